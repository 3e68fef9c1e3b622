"""Keep count of one lease: what the line granted a session, what its calls used and may yet use.

    ceiling     all that the session may ever use, by the last answer
    spent       what finished calls used; the next question reports it
    reserved    what calls that run may still use
    room        ceiling - spent - reserved: what the next call may reserve

`spent + reserved <= ceiling` holds whatever is asked and answered: a question names what must stay
(`keep_utok`), the line never takes that back, and while a question is out that gives something
back, no call reserves of it. A call that uses more than it reserved breaks it, and nothing else;
how much is counted. No clock, no Kafka: moments are monotonic seconds of the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

# More than any account can have: an amount beyond it asks for no more, and may not fit the wire.
MOST_UTOK = 10**18


class Key(NamedTuple):
    """Name what a lease pays for."""

    tenant: str
    account: str
    subscriber: str
    provider: str
    model: str


class Need(NamedTuple):
    """Say what a call asks for, in µtok: `full_utok` its worst case, no less than `least_utok`."""

    full_utok: int
    least_utok: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Be one question of a session; asked again it is the same. Fields as `hold_order` has them."""

    seq: int
    action: str
    asked_at_s: float
    least_utok: int = 0
    reported_utok: int = 0
    reserved_utok: int = 0
    first_utok: int = 0
    keep_utok: int = 0
    wanted_utok: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """Hold what of an answer a lease needs; `reason` is "none" when it was not refused.

    Where a limit refuses, `limit_name` says which, the others how it stands.
    """

    reason: str
    granted_utok: int
    threshold_utok: int
    validity_ms: int
    final: bool
    late: bool
    rest_utok: int
    limit_name: str = ""
    limit_unit: str = ""
    limit_used: int = 0
    limit_held: int = 0
    limit_value: int = -1
    resets_at_ms: int = 0
    top_up_utok: int = 0


NO_ANSWER = Granted(
    reason="",
    granted_utok=0,
    threshold_utok=0,
    validity_ms=0,
    final=False,
    late=False,
    rest_utok=0,
)


@dataclass(slots=True)
class Lease:
    """Be one session of one gateway; it ends when `over`, and another takes its place."""

    session: str
    ceiling_utok: int = 0
    spent_utok: int = 0
    reserved_utok: int = 0
    threshold_utok: int = 0
    validity_s: float = 0.0
    good_until_s: float = 0.0
    scarce: bool = False
    over: bool = False
    question: Question | None = None
    _next_seq: int = field(default=0, repr=False)
    # What calls may reserve up to while a question is out that gives something back.
    _bound_utok: int | None = field(default=None, repr=False)

    @property
    def lapses_s(self) -> float:
        """When the line closes it if it hears no more of it: after twice its validity."""
        return self.good_until_s + self.validity_s if self.validity_s else inf

    def room_at(self, now_s: float) -> int:
        """Return what the next call may reserve now; nothing once the lease is not good any more."""
        if self.over or now_s >= self.good_until_s:
            return 0
        bound = self.ceiling_utok if self._bound_utok is None else self._bound_utok
        return max(0, bound - self.spent_utok - self.reserved_utok)

    def reserve(self, amount_utok: int) -> None:
        """Set aside what a call may use; the caller saw that there is room."""
        self.reserved_utok += amount_utok

    def finish(self, reserved_utok: int, used_utok: int) -> None:
        """Turn what a call reserved into what it used."""
        self.reserved_utok -= reserved_utok
        self.spent_utok += used_utok

    def ask(
        self, now_s: float, need: Need | None, more_utok: int, *, give_back: bool = False
    ) -> Question:
        """Return the question to put: `more_utok` beyond what runs, and enough for `need`.

        With `give_back` only what calls run on is kept; else all that is in hand is.
        """
        kept, least = self.reserved_utok, need.least_utok if need else 0
        if give_back or now_s >= self.good_until_s:
            self._bound_utok = self.spent_utok + kept
        else:
            kept = max(kept, self.ceiling_utok - self.spent_utok)
        self.question = Question(
            seq=self._next_seq,
            action="update" if self._next_seq else "hold",
            asked_at_s=now_s,
            least_utok=least,
            reported_utok=self.spent_utok,
            reserved_utok=min(self.reserved_utok + least, MOST_UTOK),
            first_utok=min(self.reserved_utok + (need.full_utok if need else 0), MOST_UTOK),
            keep_utok=kept,
            wanted_utok=max(kept, min(self.reserved_utok + more_utok, MOST_UTOK)),
        )
        self._next_seq += 1
        return self.question

    def settle(self, now_s: float) -> Question:
        """Return the question that ends the session; nothing may be reserved any more."""
        self.over = True
        self.question = Question(
            seq=self._next_seq, action="settle", asked_at_s=now_s, reported_utok=self.spent_utok
        )
        self._next_seq += 1
        return self.question

    def withdraw(self) -> None:
        """Forget the question that is out: it could not be put."""
        self.question = self._bound_utok = None

    def take(self, answer: Granted) -> None:
        """Take in the answer to the question that is out."""
        question = self.question
        assert question is not None  # noqa: S101  # there is no answer without a question
        self.withdraw()
        refused = answer.reason != "none"
        unused = refused and not (answer.granted_utok or self.spent_utok or self.reserved_utok)
        if answer.late or answer.reason == "stale_seq" or unused:
            # The line has closed it, or never opened it: the next question needs a new session.
            self.over, self.scarce = True, True
            return
        self.ceiling_utok = question.reported_utok + answer.granted_utok
        self.threshold_utok = answer.threshold_utok
        if refused or question.wanted_utok > question.keep_utok:
            # Who only gave something back got all it wanted, and knows no more than before.
            self.scarce = refused or answer.final or question.wanted_utok >= MOST_UTOK
        if answer.validity_ms:
            self.validity_s = answer.validity_ms / 1000
            # Counted from the asking: the line counts from later, so it never ends before us.
            self.good_until_s = question.asked_at_s + self.validity_s


@dataclass(slots=True)
class Reserved:
    """Hold what was set aside of which lease for one call; nothing is added once that has `ended`."""

    lease: Lease
    amount_utok: int
    ended: bool = False
