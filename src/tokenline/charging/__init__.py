"""Charge one partition: fold usage and commands into its state, and write the state as a journal.

    records of one partition -> fold -> Step -> journal batch -> (after its ack) outputs

It owns: the order of judgement, what a step changes, and the bytes of the journal. It is not: a
consumer, a producer or a clock. One step is one atomic batch of the journal, so a crash leaves
whole steps; a replay of the journal gives the same state, byte for byte.
"""
