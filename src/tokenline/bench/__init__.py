"""Measure the line on real parts, in one run, beside what people would use instead.

Ratios matter more than figures: the broker shares the machine with the workers, and machines differ.
Everything runs in a temporary directory and is ended when the run ends.
"""
