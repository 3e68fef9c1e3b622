"""Keep what each account may use and has used, and decide open, warned or cut.

    orders, holds ──> books: balances, buckets, holds, answers ──┐
    rated usage ────> charge ──> counting: limits, subscribers ──┤
    usage ──────────> cells: rate windows and months ────────────┴──> decide, limit_decisions

It owns: the cells of every account, its balance, buckets and holds, the rules and the decision. It is
not: a price (that is `rating`), money, nor the memory of single events. Limits per minute, hour and
day run on the broker's clock, because a rate is about now; what is billed runs on when usage
occurred. Integers only.

    terms, kept_terms          what a plan says; the terms that accounts go by
    answers                    what was answered to which order
    books, balance, table      all of a partition's balances and the tables below; rows of int64
    entries                    what is entered into an account's ledger
    buckets, hold_rows         what pays, in burn order; what sessions hold of it
    paying, pseudo             who pays a use, and where the rest goes; what no bucket paid, and claims
    orders, refusals           open, grant, transfer, cap, change of plan; why not, with the figures
    cycle, allowances          what is due by itself: cycles, expiry; what a plan grants for its days
    holds, hold_parts          grant, enlarge, settle, expire; take of buckets and give back
    limit_holds                the same against limits
    charge, usage, counting    burn buckets with usage; count it against limits
    cells, cell_limits         rate windows and months of every account, and their ceilings
    limits, limit_windows      all other limits: whose, of what, and when they begin anew
    thresholds, standing       which parts of an allowance were told; how an account stands
    covers                     what can still be paid where not everything can
    decided, ruling, decide    open, warned or cut: the words; what the rules say; what has changed
    limit_decisions            the same of subscribers and groups of models

Follow a limit: terms -> limits -> limit_windows -> counting -> standing -> decide -> limit_decisions.
"""
