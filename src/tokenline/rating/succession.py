"""Judge whether a version of the catalog may follow those that are known, at a moment.

One rule for the command, the library and charging. A version that begins before others that are known
withdraws them: they never come into force. So it must lie ahead of all that was charged, and of all that
was held, by the version before it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tokenline.errors import BadData
from tokenline.rating.catalog import Catalog

if TYPE_CHECKING:
    from collections.abc import Sequence

DAY_MS = 86_400_000
# A year that was mistyped must not be the last word; nobody announces prices longer before.
AHEAD_MAX_MS = 400 * DAY_MS
# Nor a version number: those that count days (2026120101) step by a million a year.
FIRST_MAX = 2_100_000_000
STEP_MAX = 1_000_000
# What is charged while a version is on its way to all partitions.
LEAD_MS = 60_000


def check_succession(
    known: Sequence[Catalog], catalog: Catalog, now_ms: int, lead_ms: int | None = None
) -> None:
    """Check that a version may follow the known ones, oldest first; it begins `lead_ms` ahead at least.

    The first version of a line may begin in the past. Without `lead_ms`, for charging, which may read late
    what was published in time, any may that withdraws none.

    Raises:
        BadData: it may not; the text says what would be right.
    """
    _check_number(known[-1].version if known else None, catalog.version)
    first_ms, last_ms = now_ms + (lead_ms or 0), now_ms + AHEAD_MAX_MS
    begins = f"effective_from {catalog.moment_text(catalog.effective_ms)}"
    if catalog.effective_ms > last_ms:
        raise BadData(
            f"{begins} is more than {AHEAD_MAX_MS // DAY_MS} days ahead; it may begin until "
            f"{catalog.moment_text(last_ms // 60_000 * 60_000)}"
        )
    withdraws = any(one.effective_ms > catalog.effective_ms for one in known)
    if catalog.effective_ms <= first_ms and (withdraws or (known and lead_ms is not None)):
        raise BadData(
            f"{begins} is not {(lead_ms or 0) // 1000} s ahead: calls that run were held, and usage was "
            "charged, by the version before; it may begin from "
            f"{catalog.moment_text(next_minute_ms(first_ms))} on"
        )


def lead_ms_of(known: Sequence[Catalog]) -> int:
    """Return how far ahead a version must begin: as far as calls are held by those that are known."""
    plans = [plan for one in known for plan in one.plans.values()]
    return LEAD_MS + max((plan.priced_ahead_s for plan in plans), default=0) * 1000


def renewed(catalog: Catalog, version: int, effective_ms: int) -> Catalog:
    """Return the same terms as another version that begins at another moment.

    Raises:
        BadData: a rate of it would apply from after that moment.
    """
    said = json.loads(catalog.to_json()) | {"version": version, "effective_ms": effective_ms}
    return Catalog.from_json(json.dumps(said))


def next_minute_ms(moment_ms: int) -> int:
    """Return the first whole minute after a moment."""
    return moment_ms // 60_000 * 60_000 + 60_000


def _check_number(newest: int | None, version: int) -> None:
    if newest is None:
        if version > FIRST_MAX:
            raise BadData(f"version {version} leaves no room for others; {FIRST_MAX} is the most")
    elif version <= newest:
        raise BadData(
            f"version {version} is not greater than {newest}, the newest known: what is changed needs "
            "a new version"
        )
    elif version - newest > STEP_MAX:
        raise BadData(f"version {version} is more than {STEP_MAX} above {newest}, the newest known")
