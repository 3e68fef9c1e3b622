"""Remember what orders were answered, so that one that comes twice is carried out once."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import IntEnum

from tokenline.quota.hold_rows import Outcome, Reason, Session
from tokenline.quota.table import FREE, OWNER, Table

REMEMBERED_MS = 7 * 86_400_000
# Whose the answers to arriving parts of transfers are: a part may meet no account, and one that was
# sent back must stay so when the account is opened before the part comes a second time.
ARRIVALS = -2


class _Answer(IntEnum):
    """Name the columns; the order is part of the journal's format."""

    OWNER = 0
    NAME_HI = 1
    NAME_LO = 2
    AT = 3
    OUTCOME = 4
    REASON = 5
    BUCKET = 6
    AMOUNT = 7
    REST = 8
    DIGEST = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderAnswer:
    """Hold what became of an order; amounts in µtok.

    `bucket` is the number of the bucket it made or changed, `rest_utok` what the account may still use
    and hold behind it. `at_ms` is the broker's time of the order. `detail` is for people, and not
    remembered.
    """

    outcome: Outcome = Outcome.DONE
    reason: Reason = Reason.NONE
    bucket: int = 0
    amount_utok: int = 0
    rest_utok: int = 0
    at_ms: int = 0
    detail: str = ""


class Answers(Table):
    """Hold the answers of a week, by account and command id."""

    def __init__(self) -> None:
        super().__init__(len(_Answer))
        self._rows: dict[tuple[int, Session], int] = {}
        self._ages: deque[tuple[int, int]] = deque()

    def find(self, owner: int, name: Session) -> OrderAnswer | None:
        """Return what an order was answered, None when it was not seen."""
        row = self._rows.get((owner, name))
        if row is None:
            return None
        at_ms, outcome, reason, *amounts = self._matrix[row, _Answer.AT : _Answer.DIGEST].tolist()
        return OrderAnswer(
            outcome=Outcome(outcome),
            reason=Reason(reason),
            bucket=amounts[0],
            amount_utok=amounts[1],
            rest_utok=amounts[2],
            at_ms=at_ms,
        )

    def answers(self, owner: int, name: Session, digest: int) -> bool:
        """Say whether the answer kept under this name is that of an order of this digest, as far as is known."""
        return self._matrix.item(self._rows[owner, name], +_Answer.DIGEST) in (0, digest)

    def remember(self, owner: int, name: Session, answer: OrderAnswer, digest: int = 0) -> None:
        """Keep an answer, and let go of those that are a week older; `digest` says what was asked, 0 nothing."""
        while self._ages and self._ages[0][0] < answer.at_ms - REMEMBERED_MS:
            self._forget(self._ages.popleft()[1])
        numbers = (answer.bucket, answer.amount_utok, answer.rest_utok)
        row = self.add(
            (owner, *name, answer.at_ms, answer.outcome, answer.reason, *numbers, digest)
        )
        self._note(row)

    def index(self) -> None:
        """Find everything again when the rows were filled from a journal."""
        rows = [row for row in range(len(self)) if self._matrix[row, OWNER] != FREE]
        for row in sorted(rows, key=lambda row: (int(self._matrix[row, _Answer.AT]), row)):
            self._note(row)

    def _note(self, row: int) -> None:
        owner, hi, lo, at_ms = self._matrix[row, : _Answer.OUTCOME].tolist()
        self._rows[owner, (hi, lo)] = row
        self._ages.append((at_ms, row))

    def _forget(self, row: int) -> None:
        owner, hi, lo = self._matrix[row, : _Answer.AT].tolist()
        del self._rows[owner, (hi, lo)]
        self.free(row)
