"""Turn decoded usage into counted usage: judge each event, drop what was seen, sum windows.

It owns: which events are fit to count, the memory of seen identities, minute windows and the
calendar. It is not: a price, a quota, a transport. Order within a chunk does not matter to any
sum; a replay of the same records gives the same sums. Time comes with the records.
"""
