"""Say what of a balance is too little for any call, and how much more lets one pass: plain integers.

Gateways count by it too, so nothing here needs numpy.
"""

from __future__ import annotations

# What is taken for the smallest call where a plan does not say it, and never more of a balance than that.
USUAL_CALL_UTOK, CRUMB_SHARE = 100_000_000, 1000


def crumb_utok(said_utok: int | None, total_utok: int) -> int:
    """Return what is no more than a crumb of `total_utok`; `said_utok` is what the plan says, if it does."""
    if said_utok is not None:
        return said_utok
    return min(USUAL_CALL_UTOK, total_utok // CRUMB_SHARE)


def least_top_up(said_utok: int | None, total_utok: int, left_utok: int) -> int:
    """Return the smallest top-up after which more than a crumb is left; it makes the total larger too."""
    more = 0
    # What is left grows by all of it and the crumb by a thousandth: each turn ends nearer to the least.
    while (short := crumb_utok(said_utok, total_utok + more) + 1 - left_utok - more) > 0:
        more += short
    return more
