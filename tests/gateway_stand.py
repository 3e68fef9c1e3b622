"""Stand a gateway up without Kafka: its line grants what is asked, its broker takes every event."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

from tests.orders import CATALOG
from tests.strategies import DAY, MINUTE, NOON
from tokenline.errors import Unavailable
from tokenline.gateway.gateway import Gateway
from tokenline.gateway.lease import MOST_UTOK, Granted
from tokenline.rating.catalog import Catalog
from tokenline.settings import Settings
from tokenline.wire.receipt import EmitterStats

MILLION = 1_000_000
CALL = {"account": "a", "provider": "p", "model": "max", "prompt_tokens": 10, "max_tokens": 45}
# What a call may cost: 10 tokens of prompt and 45 of answer, at 1 and 2 standard tokens.
WORST = 100 * MILLION
PREPAID = CALL | {"model": "mini", "prompt_tokens": 1000, "max_tokens": 4000}


class Clock:
    """Stand still until it is told to go on."""

    def __init__(self):
        self.ms = NOON

    def wall_ms(self):
        return self.ms

    def monotonic_s(self):
        return self.ms / 1000


class Post:
    """Be the emitter: keep events until the broker has them, which is when a test says so."""

    def __init__(self):
        self.sent, self.receipts, self.outage = [], [], None

    def check_room(self):
        pass

    def emit_nowait(self, event):
        if self.outage is not None:
            raise self.outage
        self.sent.append(event)
        self.receipts.append(asyncio.get_running_loop().create_future())
        return self.receipts[-1]

    @property
    def stats(self):
        waiting = sum(not one.done() for one in self.receipts)
        return EmitterStats(
            emitted=len(self.sent),
            acknowledged=len(self.sent) - waiting,
            lost=0,
            waiting=waiting,
            outbox_bytes=0,
            refused=0,
            producers_started=1,
            last_error="",
        )


class Stand:
    """Be a gateway whose line grants what is asked, and whose broker takes every event, or none."""

    def __init__(self, settings):
        self.clock, self.post = Clock(), Post()
        self.sent, self.questions, self.away = self.post.sent, [], False
        self.gateway = Gateway(settings, clock=self.clock)
        self.gateway.keeper._ask = self.ask
        self.gateway.emitter = self.post
        self.scarce_utok, self.refusal = MOST_UTOK, {}
        self.says("strict")

    def says(self, plan, **fields):
        """Let the guard hear of account `a`; what it hears is fresh for a day."""
        said = {"tenant_id": "default", "account_id": "a", "subscriber_id": "", "plan": plan}
        counts = dict.fromkeys(("used", "resets_at", "as_of", "epoch", "version"), 0)
        said |= (
            {"state": "open", "rule": "", "reason": "account_set", "limit": -1} | counts | fields
        )
        said = {"model_group": "", "models": []} | self.terms_of(plan) | said
        self.gateway.guard._view.apply_decision(0, said, NOON)
        self.gateway.guard._view.apply_heartbeat(0, 0, NOON + DAY)

    def terms_of(self, plan):
        """Return what a decision says of a plan: as of the newest version that has it, as an account keeps it."""
        versions = [CATALOG, *self.gateway._catalogs.book.versions]
        known = [one for one in reversed(versions) if plan in one.plans]
        return told(known[0].plans[plan], known[0].version) if known else told(None, 0)

    def publish(self, catalog, *, for_accounts=True):
        """Bring a version, and unless it is for prices alone let charging tell its terms."""
        self.gateway._catalogs.book.add(catalog)
        self.gateway._on_catalog()
        if for_accounts:
            self.says(self.gateway.guard._view.find(("default", "a", "")).terms.plan)

    async def ask(self, key, session, question):
        self.questions.append((key, session, question))
        await asyncio.sleep(0)
        if self.away:
            raise Unavailable("nobody is there")
        granted = Granted(
            reason="none",
            granted_utok=min(question.wanted_utok, self.scarce_utok),
            threshold_utok=0,
            validity_ms=MINUTE,
            final=question.wanted_utok > self.scarce_utok,
            late=False,
            rest_utok=0,
        )
        if self.refusal:
            return replace(granted, **{"granted_utok": question.keep_utok} | self.refusal)
        return granted

    @property
    def lease(self):
        (desk,) = self.gateway.keeper._desks.values()
        return desk.lease


@asynccontextmanager
async def standing(data_dir, **fields):
    """Yield a stand; what its leases run on ends with it."""
    stand = Stand(Settings(data_dir=data_dir, gateway_id="gw", **fields))
    try:
        yield stand
    finally:
        for desk in list(stand.gateway.keeper._desks.values()):
            desk.stop()
        if stand.gateway._emergency is not None:
            stand.gateway._emergency.close()


def told(plan, version):
    """Return what a decision says of the terms of a plan."""
    least = getattr(plan, "least_call_utok", None)
    return {
        "terms_version": version,
        "mode": plan.mode if plan else "",
        "unreachable": plan.unreachable if plan else "",
        "emergency_utok": plan.emergency_utok if plan else 0,
        "abort": plan.abort if plan else "",
        "longest_call_ms": plan.longest_call_s * 1000 if plan else 0,
        "hold_validity_ms": plan.hold_validity_s * 1000 if plan else 0,
        "least_call_utok": -1 if least is None else least,
        "zero_rated_needs_balance": int(bool(plan and plan.zero_rated_needs_balance)),
    }


def version_of(number, effective_ms, **changed):
    """Return the small catalog in another version."""
    start_ms = effective_ms // MINUTE * MINUTE
    # Not a plain copy: that would keep the name of the content it was copied from.
    said = dict(CATALOG) | {"version": number, "effective_ms": start_ms} | changed
    return Catalog.model_construct(**said)
