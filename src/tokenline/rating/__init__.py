"""Turn tokens into standard tokens: the catalog, its versions in force, and what an event costs.

It owns: the catalog file and its checks, which version holds at a moment, multipliers and hours.
It is not: a balance, a limit's use or a bill; it states a plan's terms, others apply them. Integers
only: µtok and nano-yuan. All but `rate` needs neither NumPy nor Arrow, so a gateway can rate too.
"""
