"""Name what a balance row holds: an account's sums, its cycle, its terms, and when it is due."""

from __future__ import annotations

from enum import IntEnum


class Balance(IntEnum):
    """Name the columns; the order is part of the journal's format.

    HEAD is the bucket that pays for anything that occurs in [HEAD_FROM, HEAD_UNTIL), up to HEAD_LEFT,
    while the clock is before DUE_AT: most usage asks for no more than these. It is NONE where no
    bucket pays and no claim helps. LEFT and HELD are sums over the buckets valid when they were last
    looked at, TOTAL is what these had for the present cycle. STOPS is 1 where the plan lets nothing
    be used beyond them. THRESHOLDS is the number of the plan's list of them. OPENS_AT is when more
    may begin to be valid, as far as is known by then, and LOOKED_AT the last moment at which something
    happened to the account. LIMITED is 1 where `limits` counts something of it; LIMIT_RESETS is when the
    limit that cuts it has room again, 0 while none cuts, and LIMIT_ROW which that is. LEAST_CALL is how
    much is too little for any call: 0 is what is usual, and below that nothing is.

    What no bucket paid, see `pseudo`: OVERAGE, WRITTEN_OFF, LATE_ADJUSTMENT since the account was opened
    and, as _BASE, when the cycle began; OVERAGE_HELD is what sessions hold beyond all buckets. CLAIMED
    is the sum over the buckets' own. COVERS is a digest of what can still be paid, see `covers`, and
    COVERS_UNTIL is when everything can be again, 0 for never. FREE_NEEDS is 1 where a use that costs
    nothing needs a balance as well.

    TERMS is the number of the terms it goes by, and PENDING that of the plan which comes with the next
    cycle, from 1; 0 is the one it has. DEBT is what was used of allowances beyond the days they were for
    and none has paid yet; OVERUSED what was so in this cycle, paid or not.
    """

    OWNER = 0
    PLAN = 1
    MODE = 2
    STATUS = 3
    FIRST = 4
    NUMBERS = 5
    OVERAGE = 6
    CYCLE_DAY = 7
    CYCLE_START = 8
    CYCLE_END = 9
    DUE_AT = 10
    HEAD = 11
    HEAD_LEFT = 12
    HEAD_FROM = 13
    HEAD_UNTIL = 14
    LEFT = 15
    TOTAL = 16
    HELD = 17
    CHANGES = 18
    STOPS = 19
    THRESHOLDS = 20
    OVERAGE_BASE = 21
    OPENS_AT = 22
    LIMITED = 23
    LIMIT_ROW = 24
    LIMIT_RESETS = 25
    LOOKED_AT = 26
    LEAST_CALL = 27
    OVERAGE_HELD = 28
    WRITTEN_OFF = 29
    WRITTEN_OFF_BASE = 30
    LATE_ADJUSTMENT = 31
    LATE_BASE = 32
    CLAIMED = 33
    TERMS = 34
    PENDING = 35
    DEBT = 36
    OVERUSED = 37
    COVERS = 38
    COVERS_UNTIL = 39
    FREE_NEEDS = 40


# What no bucket paid: all of it together.
UNPAID = [
    +column
    for column in (
        *(Balance.OVERAGE, Balance.WRITTEN_OFF),
        *(Balance.LATE_ADJUSTMENT, Balance.CLAIMED),
    )
]
# From here on somebody has to look at an account: no customer means to use so much unpaid.
ALARM_UTOK = 10**17


class Status(IntEnum):
    """Say whether an account may use anything; the order is part of the journal's format."""

    ACTIVE = 0
    SUSPENDED = 1
    CLOSED = 2
