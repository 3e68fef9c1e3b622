"""Hold what a decision says of an account's plan: by this, and by no catalog, a gateway admits its calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass

# As long as the longest call of any plan (`rating.offers.Plan.longest_call_s`).
LONGEST_CALL_MS = 14_400_000
# Of an account without a plan: it is charged afterwards, and nothing of it is held.
NO_PLAN_AHEAD_MS = 120_000


# Compared as the thing it is: a guard keeps each distinct one once, for a million accounts.
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlanTerms:
    """Hold the terms of one plan in one version of the catalog, those that a gateway needs; times in ms.

    Without a plan `plan` and `mode` are empty; of a plan in an older line's decision `mode` is. What is
    left and no more than `least_call_utok` pays for no call; None is what is usual.
    """

    plan: str = ""
    version: int = 0
    mode: str = ""
    unreachable: str = "stop"
    emergency_utok: int = 0
    abort: str = "charge_reported"
    longest_call_ms: int = LONGEST_CALL_MS
    hold_validity_ms: int = 0
    least_call_utok: int | None = None
    zero_rated_needs_balance: bool = False

    @property
    def priced_ahead_ms(self) -> int:
        """How far ahead to look for the dearest price of a call, in ms; as `rating.offers.Plan` has it."""
        if not self.plan:
            return NO_PLAN_AHEAD_MS
        longest_ms = self.longest_call_ms if self.mode in ("strict", "") else 0
        return max(2 * self.hold_validity_ms, longest_ms)


NO_PLAN = PlanTerms()
_KEPT_MOST = 1000
_kept: dict[tuple[object, ...], PlanTerms] = {}


def plan_terms(record: Mapping[str, object]) -> PlanTerms:
    """Return the terms that a `quota_decision` carries, the same object for the same terms."""
    if not record.get("plan"):
        return NO_PLAN
    least_utok = int(str(record["least_call_utok"]))
    found = PlanTerms(
        plan=str(record["plan"]),
        version=int(str(record["terms_version"])),
        mode=str(record["mode"]),
        unreachable=str(record["unreachable"]) or "stop",
        emergency_utok=int(str(record["emergency_utok"])),
        abort=str(record["abort"]) or "charge_reported",
        longest_call_ms=int(str(record["longest_call_ms"])) or LONGEST_CALL_MS,
        hold_validity_ms=int(str(record["hold_validity_ms"])),
        least_call_utok=None if least_utok < 0 else least_utok,
        zero_rated_needs_balance=bool(record["zero_rated_needs_balance"]),
    )
    if len(_kept) >= _KEPT_MOST:
        # Those that decisions still have stay; only the same ones are told apart from now on.
        _kept.clear()
    return _kept.setdefault(astuple(found), found)
