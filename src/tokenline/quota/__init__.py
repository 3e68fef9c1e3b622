"""Keep what each account may use and has used, and decide open, warned or cut.

    orders, holds ──> books: balances, buckets, holds, answers ──┐
    rated usage ────> charge ──> counting: limits, subscribers ──┤
    usage ──────────> cells: rate windows and months ────────────┴──> decide, limit_decisions

It owns: the cells of every account, its balance, buckets and holds, the rules and the decision. It is
not: a price (that is `rating`), money, nor the memory of single events. Limits per minute, hour and
day run on the broker's clock, because a rate is about now; what is billed runs on when usage
occurred. Integers only.
"""
