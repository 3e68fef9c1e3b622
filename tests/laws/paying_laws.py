"""Laws of who pays and what is told of it, over every walk of the engine beside the model."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis.stateful import invariant

from tokenline.quota.balance import Balance
from tokenline.quota.buckets import Bucket
from tokenline.quota.decide import decide
from tokenline.quota.decided import Rule, State
from tokenline.quota.standing import figures_of
from tokenline.quota.terms import FreeModels, Use

FREE = FreeModels(("glm/gift",), 77)
USES = [
    Use(provider, model, subscriber)
    for provider in ("glm", "qwen")
    for model in ("max", "mini", "gift")
    for subscriber in ("", "mother", "son")
]


def covered(scopes, use):
    return any(
        use.among(one.models) and (not one.subscribers or use.subscriber in one.subscribers)
        for one in scopes
    )


class PayingLaws:
    """Follow what was charged, burnt and decided; mixed into the walk of `test_balance_laws`."""

    def begin_paying(self):
        self.charged, self.burnt = Counter(), Counter()
        self.scopes, self.using = {}, None
        self.standing, self.thresholds = {}, Counter()

    def note_charged(self, slot, use, amount):
        """Note one charge of an account that the model knows."""
        if slot in self.model:
            self.charged[slot] += amount
        self.using = use

    def note_burns(self, burns):
        for slot in self.model:
            for one in self.books.chain(self.books.row(slot)):
                get = self.books.buckets.get
                scope = self.books.scopes.scopes[get(one, Bucket.SCOPE)]
                self.scopes[slot, get(one, Bucket.NUMBER)] = scope
        for slot, bucket, amount in burns.tolist():
            self.burnt[slot] += amount
            assert amount >= 0
            if bucket > 0 and self.using is not None:
                assert covered([self.scopes[slot, bucket]], self.using)
        self.using = None

    def figures(self, slot):
        """Return what is used of an account in this cycle, from buckets and beyond them."""
        if slot not in self.model:
            return None
        found = figures_of(self.books, self.books.row(slot))
        return found.used_utok, found.overage_utok

    @invariant()
    def what_was_burnt_is_what_was_charged(self):
        assert getattr(self, "burnt", None) == getattr(self, "charged", None)

    @invariant()
    def claims_are_those_of_the_buckets_and_never_more_than_is_held(self):
        for slot in getattr(self, "model", ()):
            row, total = self.books.row(slot), 0
            for one in self.books.chain(row):
                held, claimed = (
                    self.books.buckets.get(one, column) for column in (Bucket.HELD, Bucket.CLAIMED)
                )
                assert 0 <= claimed <= held
                total += claimed
            assert total == self.books.get(row, Balance.CLAIMED)

    @invariant()
    def what_is_told_lets_pass_what_can_be_paid(self):
        """As a guard reads the last decision on an account, for every use."""
        for slot, account in getattr(self, "model", {}).items():
            if self.now >= self.books.get(self.books.row(slot), Balance.DUE_AT):
                continue
            minute_ms = self.now // 60_000 * 60_000
            told = decide(self.books.cells, np.array([slot]), minute_ms, 1, books=self.books)
            for one in told:
                self.standing[slot] = one
                if one.threshold_percent:
                    self.thresholds[slot, one.window_start_ms, one.threshold_percent] += 1
            passes = [use for use in USES if self.passes(slot, use)]
            assert passes == account.what_passes(USES, self.now, FREE.models)

    def passes(self, slot, use):
        last = self.standing.get(slot)
        if last is None:
            return True
        if last.state is State.CUT:
            return last.rule is Rule.BALANCE and covered(last.covers, use)
        return not last.covers or covered(last.covers, use)

    @invariant()
    def each_threshold_is_told_once_a_cycle(self):
        assert set(getattr(self, "thresholds", {}).values()) <= {1}
