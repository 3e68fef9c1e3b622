"""What enters a gateway wrong is refused by name, and no answered call is free for it.

Each public method is an entrance; each way to leave a call's block is an exit.
"""

from __future__ import annotations

import asyncio
import enum
import gc
import math
from fractions import Fraction

import numpy as np
import pytest

from tests.gateway_stand import CALL, MILLION, PREPAID, standing, version_of
from tests.orders import CATALOG
from tests.strategies import DAY, NOON
from tokenline.errors import CutOff, InvalidEvent, OutboxFull, QuotaExceeded, Unavailable
from tokenline.event import TOKEN_KINDS, UsageEvent
from tokenline.settings import Settings
from tokenline.wire.emitter import Emitter
from tokenline.wire.orders import Orders
from tokenline.wire.outbox import Outbox
from tokenline.wire.tasks import end_tasks

NO_COUNTS = [None, "10", 12.0, math.nan, math.inf, -1, True, np.True_, b"1", [1], 2**63, object()]
NO_DURATIONS = [None, "10", math.nan, math.inf, -math.inf, -1, True, [1], 10**400]
COUNTS = [7, np.int64(7), np.uint8(7), np.array(7), enum.IntEnum("E", {"SEVEN": 7}).SEVEN]


def named(value):
    return f"{type(value).__name__}-{value}"[:24]


@pytest.fixture
async def stand(tmp_path):
    async with standing(tmp_path) as stand:
        stand.publish(CATALOG)
        yield stand


def usage(stand):
    """Return what the one event of a call says."""
    (event,) = stand.sent
    return event.input_tokens, event.output_tokens, event.outcome


class TestCounts:
    @pytest.mark.parametrize("name", [*TOKEN_KINDS, "occurred_at", "started_at"])
    @pytest.mark.parametrize("value", COUNTS, ids=named)
    def test_any_integral_type_is_a_count_of_an_event(self, name, value):
        event = UsageEvent(account_id="a", provider="p", model="m", **{name: value})
        assert (getattr(event, name), type(getattr(event, name))) == (7, int)

    @pytest.mark.parametrize("name", [*TOKEN_KINDS, "attempt", "occurred_at", "started_at"])
    @pytest.mark.parametrize("value", NO_COUNTS, ids=named)
    def test_what_is_no_count_is_named(self, name, value):
        with pytest.raises(InvalidEvent, match=name):
            UsageEvent(account_id="a", provider="p", model="m", **{name: value})

    @pytest.mark.parametrize("value", COUNTS, ids=named)
    def test_units_that_are_no_tokens_are_counts_too(self, value):
        event = UsageEvent(account_id="a", provider="p", model="m", other_units={"n": value})
        assert type(event.other_units["n"]) is int

    @pytest.mark.parametrize(
        "value", [*NO_COUNTS, {"n": None}, {"n": 1.0}, {1: 1}, {"": 1}], ids=named
    )
    def test_a_map_of_units_that_is_none_is_named(self, value):
        if isinstance(value, dict) or value:
            with pytest.raises(InvalidEvent, match="other_units"):
                UsageEvent(account_id="a", provider="p", model="m", other_units=value)

    @pytest.mark.parametrize("name", ["account_id", "tags", "outcome", "usage_source", "hold_id"])
    @pytest.mark.parametrize("value", [None, 5, ["a"], {"a": 1}, b"x", object()], ids=named)
    def test_what_is_no_text_is_named(self, name, value):
        said = {"account_id": "a", "provider": "p", "model": "m", name: value}
        with pytest.raises(InvalidEvent, match=name):
            UsageEvent(**said)

    def test_a_text_of_another_library_is_a_text(self):
        event = UsageEvent(account_id=np.str_("a"), provider="p", model="m")
        assert type(event.account_id) is str


class TestAdmit:
    @pytest.mark.parametrize("value", COUNTS, ids=named)
    async def test_any_integral_type_is_a_count(self, stand, value):
        async with stand.gateway.admit(
            **CALL | {"prompt_tokens": value, "max_tokens": value}
        ) as call:
            assert (call.max_tokens, type(call.max_tokens)) == (7, int)
            call.finish({"input_tokens": value})
        assert type(stand.lease.spent_utok) is int

    @pytest.mark.parametrize("name", ["prompt_tokens", "max_tokens"])
    @pytest.mark.parametrize("value", NO_COUNTS, ids=named)
    async def test_what_is_no_count_is_named(self, stand, name, value):
        with pytest.raises(InvalidEvent, match=name):
            stand.gateway.admit(**CALL | {name: value})

    @pytest.mark.parametrize("value", NO_DURATIONS[1:], ids=named)
    async def test_a_wait_that_is_no_duration_is_named(self, stand, value):
        with pytest.raises(InvalidEvent, match="within_ms"):
            stand.gateway.admit(**CALL, within_ms=value)

    @pytest.mark.parametrize(
        "value", [0, 2.5, np.float32(1), Fraction(1, 3), np.int64(4)], ids=named
    )
    async def test_any_finite_number_is_a_wait(self, stand, value):
        async with stand.gateway.admit(
            **CALL | {"prompt_tokens": 0, "max_tokens": 0}, within_ms=value
        ) as call:
            call.finish({})

    @pytest.mark.parametrize("name", ["account", "tenant", "subscriber", "provider", "model"])
    @pytest.mark.parametrize("value", [None, 5, [], {}, b"a", "x" * 300, "a\nb"], ids=named)
    async def test_a_name_that_is_none_is_refused(self, stand, name, value):
        with pytest.raises(InvalidEvent):
            stand.gateway.admit(**CALL | {name: value})

    async def test_what_could_not_be_reported_is_not_begun(self, stand):
        """The call was answered, and its usage found no room in the outbox."""

        def full():
            raise OutboxFull("no room")

        stand.post.check_room = full
        stand.says("postpaid")
        with pytest.raises(OutboxFull):
            async with stand.gateway.admit(**CALL):
                pass


class TestProgress:
    @pytest.mark.parametrize("value", COUNTS, ids=named)
    async def test_any_integral_type_is_a_count(self, stand, value):
        async with stand.gateway.admit(**CALL) as call:
            await call.progress(output_tokens=value)
        assert usage(stand) == (10, 7, "client_abort")

    @pytest.mark.parametrize("value", NO_COUNTS, ids=named)
    async def test_what_is_no_count_is_named_and_what_was_said_before_is_charged(
        self, stand, value
    ):
        async def serve():
            async with stand.gateway.admit(**CALL) as call:
                await call.progress(output_tokens=5)
                await call.progress(output_tokens=value)

        with pytest.raises(InvalidEvent, match="output_tokens"):
            await serve()
        assert usage(stand) == (10, 5, "gateway_error")
        assert (stand.lease.reserved_utok, stand.lease.spent_utok) == (0, 20 * MILLION)

    async def test_a_client_that_leaves_after_a_count_of_numpy_is_charged(self, stand):
        """InvalidEvent hid the cancellation, no event existed and nothing was charged."""
        stand.says("small")

        async def serve():
            async with stand.gateway.admit(**PREPAID) as call:
                await call.progress(output_tokens=np.int64(2500))
                await asyncio.Event().wait()

        task = asyncio.create_task(serve())
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert usage(stand) == (1000, 2500, "client_abort")


class TestFinish:
    @pytest.mark.parametrize("value", COUNTS, ids=named)
    async def test_any_integral_type_is_a_count(self, stand, value):
        async with stand.gateway.admit(**CALL) as call:
            call.finish({"input_tokens": value, "output_tokens": value})
        assert usage(stand) == (7, 7, "completed")

    @pytest.mark.parametrize(
        ("wrong", "charged"),
        [
            (None, (10, 20)),
            ("10", (10, 20)),
            ([("input_tokens", 1)], (10, 20)),
            ({"input_tokens": None, "output_tokens": 30}, (10, 30)),
            ({"input_tokens": "10", "output_tokens": 30}, (10, 30)),
            ({"input_tokens": 9, "output_tokens": 30.0}, (9, 30)),
            ({"input_tokens": 9, "output_tokens": "31"}, (9, 31)),
            ({"input_tokens": 9, "output_tokens": math.nan}, (9, 20)),
            ({"input_tokens": 9, "output_tokens": -1}, (9, 20)),
            ({"input_tokens": 9, "output_tokens": 2**70}, (9, 20)),
            ({"prompt_tokens": 9, "completion_tokens": 30}, (10, 20)),
            ({"input_tokens": 9, "total": 39}, (9, 20)),
            ({7: 9}, (10, 20)),
            ({"input_tokens": 9, "output_tokens": 30, "account_id": "b"}, (9, 30)),
        ],
        ids=str,
    )
    async def test_a_report_that_is_wrong_makes_no_answered_call_free(self, stand, wrong, charged):
        """It was (0, 0) and blamed the provider."""

        async def serve():
            async with stand.gateway.admit(**CALL) as call:
                await call.progress(output_tokens=20)
                call.finish(wrong)

        with pytest.raises(InvalidEvent):
            await serve()
        assert usage(stand) == (*charged, "gateway_error")
        assert stand.lease.reserved_utok == 0
        assert stand.lease.spent_utok == (charged[0] + 2 * charged[1]) * MILLION
        assert stand.sent[0].usage_source == "estimated"

    @pytest.mark.parametrize(
        "fields",
        [
            {"outcome": "lost"},
            {"outcome": ["completed"]},
            {"tags": 5},
            {"attempt": 0},
            {"model": ""},
            {"model": 5},
            {"provider": "x" * 300},
            {"hold_id": "another's"},
            {"no_field": 1},
            {"input_tokens": 1},
            {"occurred_at": np.array([1, 2])},
        ],
        ids=str,
    )
    async def test_a_field_that_is_wrong_is_refused_and_the_report_is_charged(self, stand, fields):
        with pytest.raises(InvalidEvent):
            async with stand.gateway.admit(**CALL) as call:
                call.finish({"input_tokens": 9, "output_tokens": 30}, **fields)
        assert usage(stand) == (9, 30, "gateway_error")

    async def test_who_mends_his_report_is_charged_by_it(self, stand):
        async with stand.gateway.admit(**CALL) as call:
            with pytest.raises(InvalidEvent, match="output_tokens"):
                call.finish({"input_tokens": 9, "output_tokens": 30.0})
            call.finish({"input_tokens": 9, "output_tokens": 31})
        assert usage(stand) == (9, 31, "completed")

    async def test_a_report_that_found_no_room_is_what_is_charged(self, stand):
        async def serve():
            async with stand.gateway.admit(**CALL) as call:
                stand.post.outage = OutboxFull("no room")
                try:
                    call.finish({"input_tokens": 9, "reasoning_tokens": 30})
                finally:
                    stand.post.outage = None

        with pytest.raises(OutboxFull):
            await serve()
        (event,) = stand.sent
        assert (event.input_tokens, event.reasoning_tokens, event.output_tokens) == (9, 30, 0)

    async def test_a_whole_event_takes_what_is_said_beside_it(self, stand):
        said = UsageEvent(account_id="a", provider="p", model="max", output_tokens=4)
        async with stand.gateway.admit(**CALL) as call:
            call.finish(said, outcome="cut_off", tags={"team": "x"})
        (event,) = stand.sent
        assert (event.outcome, event.tags, event.event_id) == (
            "cut_off",
            {"team": "x"},
            said.event_id,
        )


class OwnError(Exception):
    """Be an exception of a gateway's own code, or of its client."""


async def leave(stand, error, outage=None):
    """Leave a call that has answered by an error, when nothing can be kept any more."""
    async with stand.gateway.admit(**CALL) as call:
        await call.progress(output_tokens=20)
        stand.post.outage = outage
        raise error


class TestExits:
    @pytest.mark.parametrize(
        ("error", "outcome"),
        [
            (CutOff("a", "balance"), "cut_off"),
            (asyncio.CancelledError(), "client_abort"),
            (GeneratorExit(), "client_abort"),
            (ConnectionError(), "upstream_error"),
            (TimeoutError(), "upstream_error"),
            (OwnError(), "gateway_error"),
            (KeyError("choices"), "gateway_error"),
            (KeyboardInterrupt(), "gateway_error"),
            (SystemExit(), "gateway_error"),
            (QuotaExceeded("a", "balance"), "gateway_error"),
            (ExceptionGroup("all", [ConnectionError(), TimeoutError()]), "upstream_error"),
            (ExceptionGroup("all", [ConnectionError(), KeyError()]), "gateway_error"),
            (ExceptionGroup("all", [ExceptionGroup("in", [CutOff("a", "x")])]), "cut_off"),
        ],
        ids=lambda one: one if isinstance(one, str) else repr(one)[:30],
    )
    async def test_however_a_block_is_left_an_answered_call_is_charged(self, stand, error, outcome):
        with pytest.raises(type(error)) as caught:
            await leave(stand, error)
        assert caught.value is error
        assert usage(stand) == (10, 20, outcome)
        assert stand.lease.reserved_utok == 0

    async def test_a_gateways_own_fault_before_finish_makes_no_answered_call_free(self, stand):
        """A call that does not stream tells nothing while it is answered: it was (0, 0)."""
        with pytest.raises(KeyError):
            async with stand.gateway.admit(**CALL, streams=False):
                raise KeyError("choices")
        assert usage(stand) == (10, 0, "gateway_error")

    async def test_a_client_of_providers_says_which_of_its_errors_are_theirs(self, stand):
        stand.gateway.upstream_errors += (OwnError,)
        with pytest.raises(OwnError):
            async with stand.gateway.admit(**CALL):
                raise OwnError
        assert usage(stand) == (0, 0, "upstream_error")

    @pytest.mark.parametrize(
        "outage", [OutboxFull("no room"), OSError(5, "io"), Unavailable("closed")]
    )
    async def test_the_callers_exception_stays_his_when_nothing_can_be_kept(self, stand, outage):
        for error in (asyncio.CancelledError(), ValueError("mine")):
            with pytest.raises(type(error)) as caught:
                await leave(stand, error, outage)
            assert caught.value is error
            stand.post.outage = None
        assert (stand.lease.reserved_utok, stand.lease.spent_utok) == (0, 2 * 50 * MILLION)

    async def test_who_leaves_without_a_word_hears_that_nothing_was_kept(self, stand):
        with pytest.raises(OutboxFull):
            async with stand.gateway.admit(**CALL):
                stand.post.outage = OutboxFull("no room")

    async def test_a_generator_that_is_closed_settles_its_call(self, stand):
        async def serve():
            async with stand.gateway.admit(**CALL) as call:
                await call.progress(output_tokens=20)
                yield 1

        answer = serve()
        await anext(answer)
        await answer.aclose()
        assert usage(stand) == (10, 20, "client_abort")

    async def test_a_task_that_is_thrown_away_settles_its_call(self, stand):
        """Its loop goes on without it, or has ended: nobody runs it any more."""

        async def serve():
            async with stand.gateway.admit(**CALL) as call:
                await call.progress(output_tokens=20)
                await asyncio.Event().wait()

        call = serve()
        for _ in range(10):
            if (waits := call.send(None)) is not None:
                await asyncio.wait([waits], timeout=0.01)
            if stand.gateway._running:
                break
        call.close()
        del call
        gc.collect()
        assert usage(stand)[2] == "client_abort"

    async def test_calls_that_run_when_the_gateway_closes_are_settled(self, stand):
        calls, answered = [], asyncio.Event()

        async def serve():
            async with stand.gateway.admit(**CALL) as call:
                calls.append(call)
                await call.progress(output_tokens=20)
                answered.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(serve())
        await answered.wait()
        await stand.gateway.__aexit__(None, None, None)
        assert usage(stand) == (10, 20, "gateway_error")
        with pytest.raises(InvalidEvent, match="has ended"):
            calls[0].finish({"input_tokens": 1})
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert len(stand.sent) == 1

    @pytest.mark.parametrize(
        ("policy", "charged"), [("charge_granted", (10, 45)), ("release", (0, 0))]
    )
    async def test_the_plan_says_what_is_charged_of_what_was_misreported(
        self, stand, policy, charged
    ):
        plan = CATALOG.plans["strict"].model_copy(update={"abort": policy})
        stand.publish(version_of(2, NOON - DAY, plans={"strict": plan}))
        with pytest.raises(InvalidEvent):
            async with stand.gateway.admit(**CALL) as call:
                call.finish({"input_tokens": 9, "output_tokens": 3.0})
        assert usage(stand) == (*charged, "gateway_error")


class TestModelThatRan:
    async def test_a_fallback_is_charged_as_the_model_that_ran(self, stand):
        async with stand.gateway.admit(**CALL) as call:
            call.finish({"input_tokens": 10, "output_tokens": 20}, model="mini")
        (event,) = stand.sent
        assert (event.model, event.model_requested, event.hold_id) == ("mini", "max", call.hold_id)
        price = stand.gateway._prices.charge_utok("p", "mini", event.kinds(), NOON)
        assert 0 < stand.lease.spent_utok == price < 50 * MILLION

    async def test_one_without_a_price_is_reported_and_costs_nothing_yet(self, stand):
        async with stand.gateway.admit(**CALL) as call:
            call.finish({"output_tokens": 20}, provider="other", model="unheard of")
        (event,) = stand.sent
        assert (event.provider, event.model, event.model_requested) == (
            "other",
            "unheard of",
            "max",
        )
        assert (stand.lease.spent_utok, stand.lease.reserved_utok) == (0, 0)

    async def test_a_whole_event_may_be_of_another_model(self, stand):
        said = UsageEvent(account_id="a", provider="q", model="mini", output_tokens=4)
        async with stand.gateway.admit(**CALL) as call:
            call.finish(said)
        (event,) = stand.sent
        assert (event.provider, event.model, event.model_requested) == ("q", "mini", "max")

    async def test_who_says_what_was_asked_for_is_believed(self, stand):
        async with stand.gateway.admit(**CALL) as call:
            call.finish({"output_tokens": 4}, model="mini", model_requested="auto")
        assert stand.sent[0].model_requested == "auto"

    async def test_the_same_model_is_no_fallback(self, stand):
        async with stand.gateway.admit(**CALL) as call:
            call.finish({"output_tokens": 4}, provider="p", model="max")
        assert stand.sent[0].model_requested == ""


class TestOthers:
    @pytest.mark.parametrize("value", [None, {"account_id": "a"}, "a", 5], ids=named)
    async def test_what_is_no_event_is_not_emitted(self, tmp_path, value):
        async with emitter(tmp_path) as sender:
            with pytest.raises(InvalidEvent, match="UsageEvent"):
                sender.emit_nowait(value)
            with pytest.raises(InvalidEvent, match="UsageEvent"):
                await sender.emit(value)
            assert sender.stats.emitted == 0

    @pytest.mark.parametrize("value", NO_DURATIONS[1:], ids=named)
    async def test_a_deadline_that_is_no_duration_is_named(self, tmp_path, value):
        event = UsageEvent(account_id="a", provider="p", model="m")
        async with emitter(tmp_path) as sender:
            with pytest.raises(InvalidEvent, match="deadline_ms"):
                await sender.emit(event, deadline_ms=value)
            with pytest.raises(InvalidEvent, match="within_ms"):
                await sender.flush(value)
            assert sender.stats.emitted == 0
        for name in ("deadline_ms", "close_ms"):
            with pytest.raises(InvalidEvent, match=name):
                Emitter(Settings(), source="s", gateway_id="g", **{name: value})

    @pytest.mark.parametrize("value", NO_DURATIONS, ids=named)
    async def test_an_order_that_waits_for_no_duration_is_not_sent(self, value):
        orders = Orders(Settings())
        for ask in (
            orders.order("a", kind="show", timeout_s=value),
            orders.show("a", timeout_s=value),
            orders.hold("a", "s", 0, timeout_s=value),
            orders.publish_catalog(1, 0, "", timeout_s=value),
        ):
            with pytest.raises(InvalidEvent, match="timeout_s"):
                await ask

    def test_an_event_that_is_emitted_where_the_loop_has_ended_is_kept(self, tmp_path):
        sender = emitter(tmp_path)

        async def start():
            await sender.start()
            await end_tasks([*sender._tasks, *sender._delivery._tasks])

        asyncio.run(start())
        sender.emit_nowait(UsageEvent(account_id="a", provider="p", model="m"))
        assert sender._outbox.emitted == 1
        sender._outbox.close()
        assert len(Outbox(sender._outbox_dir, "g").take_recovered()) == 1


def emitter(path):
    """Return an emitter whose broker is nowhere."""
    settings = Settings(kafka_bootstrap="127.0.0.1:1", data_dir=path)
    return Emitter(settings, source="s", gateway_id="g", on_outage="spool", close_ms=10)
