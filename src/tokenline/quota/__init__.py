"""Keep what each account may use and has used, and decide open, warned or cut.

It owns: the cells of every account, the rules and the decision. It is not: money, a bucket or a
hold (they come later), nor the memory of single events. Limits per minute, hour and day run on the
broker's clock, because a rate is about now; the monthly allowance runs on the month in which usage
occurred, because that is what is billed. Integers only.
"""
