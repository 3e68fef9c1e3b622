"""A catalog file says exactly what it costs, or is refused with the place that is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from fractions import Fraction
from pathlib import Path

import pytest

from tokenline.errors import BadData
from tokenline.event import TOKEN_KINDS
from tokenline.rating.catalog import Catalog, read_catalog
from tokenline.rating.exact import clock_text, decimal_text, minute_of, nano_of, ratio_of, utok_of

SAMPLE = Path(__file__).parents[2] / "schemas" / "catalog.toml"
HEAD = {
    "version": "1",
    "effective_from": "2026-06-01T00:00:00+08:00",
    "time_zone": '"Asia/Shanghai"',
    "currency": '"CNY"',
    "unknown_model": '"reject"',
}
RATE = {"provider": '"p"', "model": '"m"', "input_tokens": "1", "output_tokens": '"2.5"'}
PLAN = {"title": '"T"', "fee": '"9.9"', "tokens": "10", "mode": '"postpaid"'}
PACK = {"title": '"T"', "fee": '"1"', "tokens": "10", "valid_days": "30"}


def fields(said):
    return "\n".join(f"{name} = {value}" for name, value in said.items() if value is not None)


def text(head=None, rate=None, plan=None, pack=None, more=""):
    """Return a good file in which the fields given are different, or gone where they are None."""
    parts = [fields(HEAD | (head or {})), "[[rates]]", fields(RATE | (rate or {})), more]
    if plan is not None:
        parts += ["[plans.basic]", fields(PLAN | plan)]
    if pack is not None:
        parts += ["[packs.small]", fields(PACK | pack)]
    return "\n".join(parts)


@pytest.fixture
def read(tmp_path):
    def from_file(**said):
        file = tmp_path / "catalog.toml"
        file.write_text(text(**said), encoding="utf-8")
        return read_catalog(file)

    return from_file


@pytest.fixture
def refusal(read, tmp_path):
    """Return the one line with which a file is refused, without its name."""

    def of(**said):
        with pytest.raises(BadData) as refused:
            read(**said)
        line = str(refused.value)
        assert line.startswith(f"{tmp_path / 'catalog.toml'}: ")
        assert "\n" not in line
        return line.removeprefix(f"{tmp_path / 'catalog.toml'}: ")

    return of


def multipliers(rate):
    return dict(zip(TOKEN_KINDS, rate.utok, strict=True))


def test_the_sample_is_a_catalog_with_the_offers_of_the_press():
    catalog = read_catalog(SAMPLE)
    plans = {(one.tokens // 10**6, one.fee_nano // 10**8) for one in catalog.plans.values()}
    assert plans >= {(10, 99), (40, 299), (80, 499), (15, 399), (70, 1599)}
    assert plans >= {(150, 2999), (250, 2999)}
    packs = {(one.tokens, one.fee_nano // 10**9) for one in catalog.packs.values()}
    assert packs == {(400_000, 1), (250_000, 1), (30_000_000, 0)}
    assert {one.mode for one in catalog.plans.values()} == {"postpaid", "prepaid", "strict"}


def test_a_whole_file_is_read_as_integers(read):
    catalog = read(plan={"overage_price": '"2.66"', "used_up": '"overage"'}, pack={})
    plan, pack = catalog.plans["basic"], catalog.packs["small"]
    assert (plan.fee_nano, plan.overage_nano) == (9_900_000_000, 2_660_000_000)
    assert (plan.allowance_utok, pack.allowance_utok) == (10_000_000, 10_000_000)
    assert catalog.effective_ms == 1_780_243_200_000
    assert catalog.effective_from.isoformat() == "2026-06-01T00:00:00+08:00"


def test_defaults_are_the_careful_ones(read):
    catalog = read(plan={}, pack={})
    plan, pack = catalog.plans["basic"], catalog.packs["small"]
    assert (plan.used_up, plan.overage_nano, plan.unreachable) == ("stop", None, "stop")
    assert (plan.hold_validity_s, plan.hold_expiry, plan.abort) == (60, *["charge_reported"] * 2)
    assert (plan.proration, plan.rollover_utok, plan.emergency_utok) == ("prorate", 0, 0)
    assert (plan.priority, plan.thresholds, plan.groups) == (100, (50, 80, 100), ())
    assert (plan.subscriber_utok, plan.limits) == (None, ())
    assert (pack.priority, pack.source, pack.transferable, pack.shared) == (
        100,
        "pack",
        False,
        True,
    )
    assert (pack.groups, pack.issuer) == ((), None)


def test_a_kind_that_is_not_named_costs_what_it_stands_for(read):
    plain = multipliers(read().rates[0])
    assert {kind for kind, utok in plain.items() if utok == 2_500_000} == {
        "output_tokens",
        "reasoning_tokens",
        "audio_output_tokens",
        "image_output_tokens",
    }
    assert set(plain.values()) == {1_000_000, 2_500_000}
    given = multipliers(
        read(rate={"cache_write_tokens": '"5/4"', "cache_read_tokens": '"0.1"'}).rates[0]
    )
    assert given["cache_write_1h_tokens"] == given["cache_write_tokens"] == 1_250_000
    assert given["cache_read_tokens"] == 100_000
    assert given["audio_input_tokens"] == 1_000_000


@pytest.mark.parametrize("kind", TOKEN_KINDS)
def test_each_kind_can_have_a_multiplier_of_its_own(read, kind):
    assert multipliers(read(rate={kind: '"0.000007"'}).rates[0])[kind] == 7


@pytest.mark.parametrize(
    ("said", "utok"),
    [
        (0, 0),
        (100, 10**8),
        ("0.1", 100_000),
        ("5/4", 1_250_000),
        ("1/64", 15_625),
        ("007", 7 * 10**6),
    ],
)
def test_a_multiplier_is_read_exactly(said, utok):
    assert utok_of(said) == utok


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("-1", "not a number"),
        ("1e3", "not a number"),
        ("", "not a number"),
        (".5", "not a number"),
        ("1/0", "not a number"),
        ("1_000", "not a number"),
        (" 1", "not a number"),
        ("٣", "not a number"),
        ("nan", "not a number"),
        (-1, "not a number"),
        (True, "not a number"),
        (None, "not a number"),
        (0.5, "write it as text"),
        (101, "above 100"),
        ("100.000001", "above 100"),
        ("0.0000001", "whole number of millionths"),
        ("1/3", "whole number of millionths"),
    ],
)
def test_what_is_no_multiplier_is_refused(said, why):
    with pytest.raises(ValueError, match=why):
        utok_of(said)


@pytest.mark.parametrize(
    ("said", "nano"),
    [(0, 0), ("9.9", 9_900_000_000), (20, 2 * 10**10), ("0.000000001", 1), (10**9, 10**18)],
)
def test_money_is_read_exactly(said, nano):
    assert nano_of(said) == nano


@pytest.mark.parametrize("said", [9.9, "1/2", "-1", "9,9", True, None, "0.0000000001", 10**9 + 1])
def test_what_is_no_amount_is_refused(said):
    with pytest.raises(ValueError, match=r"yuan|number"):
        nano_of(said)


@pytest.mark.parametrize(("said", "minute"), [("00:00", 0), ("08:30", 510), ("24:00", 1440)])
def test_a_time_of_day_is_read(said, minute):
    assert minute_of(said) == minute
    assert clock_text(minute) == said


@pytest.mark.parametrize("said", ["8:00", "24:01", "25:00", "08:60", "0800", "08:00:00", 8, None])
def test_what_is_no_time_of_day_is_refused(said):
    with pytest.raises(ValueError, match="time of day"):
        minute_of(said)


@pytest.mark.parametrize(
    ("amount", "shown"), [(0, "0"), (1, "0.000001"), (2_500_000, "2.5"), (10**8, "100")]
)
def test_a_number_is_written_without_zeros_that_say_nothing(amount, shown):
    assert decimal_text(amount, 10**6) == shown
    assert ratio_of(shown) == Fraction(amount, 10**6)


@pytest.mark.parametrize(
    ("head", "line"),
    [
        ({"version": "0"}, "version: Input should be greater than or equal to 1"),
        ({"version": None}, "version: Field required"),
        ({"version": "1.0"}, "version: Input should be a valid integer"),
        ({"colour": '"red"'}, "colour: Extra inputs are not permitted"),
        ({"effective_from": None}, "effective_from: Field required"),
        ({"effective_from": '"tomorrow"'}, "effective_from: tomorrow is not a time with an offset"),
        ({"effective_from": "2026-06-01T00:00:00"}, "is not a time with an offset"),
        ({"effective_from": "2026-06-01"}, "is not a time with an offset"),
        ({"effective_from": "2026-06-01T00:00:30Z"}, "is not a whole minute"),
        ({"effective_from": "2026-06-01T00:00:00.5Z"}, "is not a whole minute"),
        ({"effective_from": "1969-12-31T00:00:00Z"}, "effective_from: Input should be greater"),
        (
            {"effective_from": "0001-01-01T00:00:00+08:00"},
            "effective_from: Input should be greater",
        ),
        ({"effective_from": "9999-12-31T23:59:00-08:00"}, "effective_from: Input should be less"),
        ({"time_zone": '"Mars/Olympus"'}, "time_zone: 'Mars/Olympus' is not an IANA zone"),
        ({"time_zone": '"../etc"'}, "is not an IANA zone"),
        ({"currency": '"USD"'}, "currency: Input should be 'CNY'"),
        ({"unknown_model": '"one"'}, "unknown_model: Input should be 'reject' or 'default'"),
        ({"unknown_model": '"default"'}, "unknown_model = 'default' needs [default_rate]"),
    ],
)
def test_a_wrong_head_is_refused(refusal, head, line):
    assert line in refusal(head=head)


def test_a_default_rate_that_would_never_be_used_is_refused(refusal):
    more = "[default_rate]\ninput_tokens = 1\noutput_tokens = 1"
    assert refusal(more=more) == "unknown_model = 'reject' takes no [default_rate]"


@pytest.mark.parametrize(
    ("rate", "line"),
    [
        ({"input_tokens": None}, "rates.0 (p/m): input_tokens is missing"),
        ({"output_tokens": None}, "rates.0 (p/m): output_tokens is missing"),
        (
            {"input_tokens": "0.1"},
            'rates.0 (p/m): input_tokens: 0.1 is not a number such as 2, "0.1"',
        ),
        ({"reasoning_tokens": "101"}, "rates.0 (p/m): reasoning_tokens: 101 is above 100"),
        ({"input_tokens": '"1/3"'}, "rates.0 (p/m): input_tokens: '1/3' is not a whole number"),
        ({"input": "1"}, "rates.0.input (p/m): Extra inputs are not permitted"),
        ({"model": None}, "rates.0.model (p/None): Field required"),
        ({"model": '""'}, "rates.0.model (p/): '' is empty"),
        ({"model": '" m"'}, "has white space around it"),
        ({"model": '"m\\u0007"'}, "has U+0007, a control character"),
        ({"model": '"m*"'}, "rates.0 (p/m*): model 'm*': '*' stands for all models"),
        ({"provider": '"*"'}, "rates.0 (*/m): provider '*' must not have '/' or '*'"),
        ({"provider": '"a/b"'}, "rates.0 (a/b/m): provider 'a/b' must not have '/' or '*'"),
        ({"utok": "[1]"}, "rates.0.utok (p/m): Value should have at least 10 items"),
        ({"utok": str([1] * 10)}, "rates.0.input_tokens (p/m): Extra inputs are not permitted"),
    ],
)
def test_a_wrong_rate_is_refused_by_its_name(refusal, rate, line):
    assert line in refusal(rate=rate)


def test_a_model_has_one_rate(refusal):
    assert refusal(more=f"[[rates]]\n{fields(RATE)}") == "rates: p/m stands twice"


def test_a_catalog_without_any_rate_is_refused():
    said = tomllib.loads(fields(HEAD))
    with pytest.raises(BadData, match="not JSON"):
        Catalog.from_json("{")
    said = {**said, "effective_from": None}
    said.pop("effective_from")
    with pytest.raises(BadData, match="neither a rate nor a default_rate"):
        Catalog.from_json(json.dumps({**said, "effective_ms": 0}))


@pytest.mark.parametrize(
    ("hours", "line"),
    [
        (
            '{ from = "08:00", to = "08:00", multiply = 2 }',
            "08:00 to 08:00: from and to are the same",
        ),
        ('{ from = "00:00", to = "00:00", multiply = 2 }', None),
        ('{ from = "8", to = "09:00", multiply = 2 }', "hours.0 (p/m): from: '8' is not a time"),
        ('{ from = "08:00", to = "24:01", multiply = 2 }', "to: '24:01' is not a time of day"),
        (
            '{ from = "24:00", to = "08:00", multiply = 2 }',
            "hours.0.from (p/m): Input should be less",
        ),
        ('{ from = "08:00", to = "09:00" }', "rates.0.hours.0.multiply (p/m): Field required"),
        ('{ from = "08:00", to = "09:00", multiply = 0.5 }', "multiply: 0.5 is not a number"),
        ('{ from = "08:00", to = "09:00", multiply = 101 }', "multiply: 101 is above 100"),
        ('{ from = "08:00", to = "09:00", multiply = [2, 4] }', "no fraction in lowest terms"),
        ('{ from = "08:00", to = "09:00", multiply = [1, 0] }', "no fraction in lowest terms"),
        ('{ from = "08:00", to = "09:00", multiply = 41 }', "output_tokens then is above 100"),
        (
            '{ from = "08:00", to = "09:00", multiply = "1/3" }',
            "hours 08:00 to 09:00: input_tokens then is not a whole number of millionths",
        ),
        (
            '{ from = "08:00", to = "09:01", multiply = 2 }, { from = "09:00", to = "10:00", multiply = 2 }',
            "rates.0 (p/m): hours overlap at 09:00",
        ),
        (
            '{ from = "22:00", to = "06:00", multiply = 2 }, { from = "05:59", to = "07:00", multiply = 2 }',
            "hours overlap at 05:59",
        ),
        (
            '{ from = "08:00", to = "09:00", multiply = 2 }, { from = "09:00", to = "10:00", multiply = 3 }',
            None,
        ),
    ],
)
def test_hours_are_checked(read, refusal, hours, line):
    if line is None:
        assert read(rate={"hours": f"[{hours}]"}).rates[0].hours
    else:
        assert line in refusal(rate={"hours": f"[{hours}]"})


def test_hours_hold_from_their_first_minute_to_before_their_last(read):
    night = '[{ from = "22:00", to = "06:30", multiply = "1/2" }, { from = "12:00", to = "13:00", multiply = 0 }]'
    rate = read(rate={"hours": night}).rates[0]
    inputs = {minute: rate.row_at(minute)[0] for minute in (0, 389, 390, 720, 779, 780, 1319, 1320)}
    half, full = 500_000, 1_000_000
    assert inputs == {
        0: half, 389: half, 390: full, 720: 0, 779: 0, 780: full, 1319: full, 1320: half,
    }  # fmt: skip


def test_midnight_is_the_end_of_a_day_by_either_name(read):
    one, other = (
        read(rate={"hours": f'[{{ from = "22:00", to = "{to}", multiply = 2 }}]'})
        for to in ("24:00", "00:00")
    )
    assert one.to_json() == other.to_json()
    assert one.rates[0].row_at(0) == one.rates[0].utok


@pytest.mark.parametrize(
    ("plan", "line"),
    [
        ({"fee": "9.9"}, "plans.basic: fee: 9.9 is not an amount of yuan as text"),
        ({"fee": None}, "plans.basic.fee: Field required"),
        ({"fee_nano": "1"}, "plans.basic: fee and fee_nano say the same"),
        ({"tokens": "-1"}, "plans.basic.tokens: Input should be greater"),
        ({"tokens": "1_000_000_000_001"}, "plans.basic.tokens: Input should be less"),
        ({"tokens": "1e6"}, "plans.basic.tokens: Input should be a valid integer"),
        ({"mode": None}, "plans.basic.mode: Field required"),
        ({"mode": '"free"'}, "plans.basic.mode: Input should be 'postpaid', 'prepaid' or 'strict'"),
        ({"used_up": '"overage"'}, "plans.basic: used_up = 'overage' needs overage_price"),
        ({"overage_price": '"2"'}, "plans.basic: used_up = 'stop' takes no overage_price"),
        (
            {"mode": '"strict"', "used_up": '"overage"', "overage_price": "2"},
            "plans.basic: a strict plan never goes beyond its tokens",
        ),
        (
            {"unreachable": '"emergency"'},
            "plans.basic: unreachable = 'emergency' needs emergency_tokens",
        ),
        ({"emergency_tokens": "5"}, "plans.basic: unreachable = 'stop' takes no emergency_tokens"),
        ({"thresholds": "[50, 50]"}, "plans.basic.thresholds: percents must ascend"),
        ({"thresholds": "[80, 50]"}, "plans.basic.thresholds: percents must ascend"),
        ({"thresholds": "[0]"}, "plans.basic.thresholds.0: Input should be greater"),
        ({"hold_validity_s": "0"}, "plans.basic.hold_validity_s: Input should be greater"),
        ({"hold_validity_s": "3601"}, "plans.basic.hold_validity_s: Input should be less"),
        ({"hold_expiry": '"keep"'}, "plans.basic.hold_expiry: Input should be 'charge_reported'"),
        ({"proration": "true"}, "plans.basic.proration: Input should be 'prorate' or 'full'"),
        ({"groups": '["none"]'}, "plans.basic.groups: there is no group 'none'; groups: all, one"),
        ({"groups": '["one", "one"]'}, "plans.basic.groups: a name stands twice"),
        ({"limits": '[{ per = "day" }]'}, "plans.basic.limits.0: give exactly one of tokens, utok"),
        (
            {"limits": '[{ tokens = 1, requests = 1, per = "day" }]'},
            "plans.basic.limits.0: give exactly one of",
        ),
        (
            {"limits": '[{ tokens = 1, per = "month", rolling = true }]'},
            "plans.basic.limits.0: a month has no fixed length, so it cannot be rolling",
        ),
        (
            {"limits": '[{ tokens = 1, per = "cycle", rolling = true }]'},
            "a cycle has no fixed length",
        ),
        (
            {"limits": '[{ tokens = 1, per = "day", subscriber = "kid" }]'},
            'plans.basic.limits.0: a limit that names a subscriber needs of = "subscriber"',
        ),
        (
            {"limits": '[{ tokens = 1, per = "day", group = "none" }]'},
            "plans.basic.limits.0: there is no group 'none'",
        ),
        (
            {"limits": '[{ tokens = 1, per = "day" }, { tokens = 2, per = "day" }]'},
            "plans.basic: limits: two for one window: tokens day calendar account",
        ),
        ({"limits": '[{ tokens = 1, per = "year" }]'}, "plans.basic.limits.0.per: Input should be"),
    ],
)
def test_a_wrong_plan_is_refused(refusal, plan, line):
    assert line in refusal(plan=plan, more='[groups]\none = ["p/m"]\nall = ["p/*"]')


def test_limits_of_a_plan_say_what_is_counted(read):
    limits = (
        read(
            plan={
                "limits": '[{ tokens = 1, per = "day" }, { utok = 2, per = "week", rolling = true }, '
                '{ requests = 0, per = "cycle", of = "subscriber", subscriber = "kid", group = "one" }]'
            },
            more='[groups]\none = ["p/m"]',
        )
        .plans["basic"]
        .limits
    )
    assert [(one.unit, one.ceiling) for one in limits] == [
        ("tokens", 1),
        ("utok", 2),
        ("requests", 0),
    ]
    assert limits[2].window == ("requests", "cycle", "calendar", "subscriber", "one", "kid")


def test_what_belongs_to_a_choice_is_kept(read):
    plan = read(
        plan={
            "unreachable": '"emergency"',
            "emergency_tokens": "7",
            "rollover_tokens": "3",
            "subscriber_tokens": "4",
            "thresholds": "[]",
        }
    ).plans["basic"]
    assert (plan.emergency_utok, plan.rollover_utok, plan.subscriber_utok) == (
        7_000_000,
        3_000_000,
        4_000_000,
    )
    assert plan.thresholds == ()


@pytest.mark.parametrize(
    ("pack", "line"),
    [
        ({"tokens": "0"}, "packs.small.tokens: Input should be greater"),
        ({"valid_days": "0"}, "packs.small.valid_days: Input should be greater"),
        ({"source": '"plan"'}, "packs.small.source: Input should be 'pack', 'gift' or 'free'"),
        ({"source": '"free"'}, "packs.small: a free pack has no fee: write fee = 0"),
        ({"transferable": "1"}, "packs.small.transferable: Input should be a valid boolean"),
        ({"groups": '["g"]'}, "packs.small.groups: there is no group 'g'; groups: none"),
    ],
)
def test_a_wrong_pack_is_refused(refusal, pack, line):
    assert line in refusal(pack=pack)


@pytest.mark.parametrize(
    ("members", "line"),
    [
        ("[]", "groups.g: a group has at least one model"),
        ('["m"]', "groups.g: 'm' is not provider/model or provider/*"),
        ('["/m"]', "groups.g: '/m' is not provider/model"),
        ('["p/"]', "groups.g: 'p/' is not provider/model"),
        ('["p/m*"]', "groups.g: model 'm*': '*' stands for all models"),
        ('["*/m"]', "groups.g: provider '*' must not have"),
        ('["p/m", "p/m"]', "groups.g: a name stands twice"),
        ('["p/other"]', "groups.g: 'p/other' has no rate"),
        ('["q/*"]', "groups.g: 'q/*' has no rate"),
    ],
)
def test_a_wrong_group_is_refused(refusal, members, line):
    assert line in refusal(more=f"[groups]\ng = {members}")


def test_a_group_may_name_what_the_providers_own_or_the_default_rate_covers(read):
    assert read(rate={"model": '"*"'}, more='[groups]\ng = ["p/some/model"]').groups
    default = "[default_rate]\ninput_tokens = 1\noutput_tokens = 1"
    catalog = read(
        head={"unknown_model": '"default"'}, more=f'{default}\n[groups]\ng = ["q/x"]\nh = ["p/m"]'
    )
    assert catalog.models_in(["g", "h"]) == ("p/m", "q/x")
    assert catalog.models_in([]) == ()


def test_a_models_own_rate_wins_then_its_providers_then_the_default(read):
    wild = '[[rates]]\nprovider = "p"\nmodel = "*"\ninput_tokens = 2\noutput_tokens = 2'
    default = "[default_rate]\ninput_tokens = 3\noutput_tokens = 3"
    catalog = read(head={"unknown_model": '"default"'}, more=f"{wild}\n{default}")
    found = [catalog.rate_of(*pair) for pair in (("p", "m"), ("p", "n"), ("q", "m"))]
    assert [one.utok[0] for one in found if one] == [1_000_000, 2_000_000, 3_000_000]
    assert read(more=wild).rate_of("q", "m") is None


def test_json_has_integers_only_and_comes_back(read):
    catalog = read_catalog(SAMPLE)
    said = catalog.to_json()

    def no_float(number):
        raise AssertionError(number)

    json.loads(said, parse_float=no_float)
    again = Catalog.from_json(said)
    assert again == catalog
    assert again is not catalog
    assert (again.to_json(), hash(again), again.digest) == (said, hash(catalog), catalog.digest)
    assert again != read()
    assert catalog != said


def test_the_order_of_a_file_and_the_way_a_number_is_written_mean_nothing(read):
    other = '[[rates]]\nprovider = "o"\nmodel = "m"\ninput_tokens = "4/2"\noutput_tokens = "1.50"\n'
    groups = '[groups]\ng = ["p/m", "o/m"]\na = ["o/*"]\n[plans.z]\n' + fields(PLAN)
    one = read(plan={"groups": '["g", "a"]'}, more=other + groups)
    lines = [
        *("[plans.basic]", fields(PLAN | {"groups": '["a", "g"]', "fee": '"9.900"'})),
        *("[plans.z]", fields(PLAN), "[groups]", 'a = ["o/*"]', 'g = ["o/m", "p/m"]', "[[rates]]"),
        fields({"output_tokens": '"3/2"', "input_tokens": 2, "provider": '"o"', "model": '"m"'}),
    ]
    same = read(more="\n".join(lines))
    assert same.to_json() == one.to_json()


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("", "catalog: not JSON"),
        ("[" * 100_000, "catalog: not JSON"),
        ("[]", "catalog: Input should be a valid dictionary or instance of Catalog"),
        ("1" * 5000, "catalog: not JSON"),
        ('{"rates": [1]}', "catalog: "),
        ('{"rates": {"a": 1}}', "catalog: "),
    ],
)
def test_what_is_no_catalog_is_bad_data(said, line):
    with pytest.raises(BadData, match=line):
        Catalog.from_json(said)


@pytest.mark.parametrize("part", ["rates", "hours"])
def test_json_that_breaks_a_rule_of_the_file_is_refused(read, part):
    catalog = read(rate={"hours": '[{ from = "08:00", to = "09:00", multiply = "1/2" }]'})
    said = json.loads(catalog.to_json())
    if part == "rates":
        said["rates"][0]["utok"][3] = 10**8 + 1
    else:
        said["rates"][0]["utok"][3] = 7
    with pytest.raises(BadData, match=r"catalog: rates\.0.*\(p/m\)"):
        Catalog.from_json(json.dumps(said))


def test_a_file_that_cannot_be_read_is_bad_data(tmp_path):
    with pytest.raises(BadData, match="No such file"):
        read_catalog(tmp_path / "none.toml")
    for raw in (b"version = ", b"\xff", b"version = " + b"1" * 5000):
        (tmp_path / "bad.toml").write_bytes(raw)
        with pytest.raises(BadData, match=r"not TOML|not UTF-8"):
            read_catalog(tmp_path / "bad.toml")


def test_nothing_of_a_catalog_can_be_changed(read):
    catalog = read(plan={})
    with pytest.raises(ValueError, match="frozen"):
        catalog.version = 2
    with pytest.raises(ValueError, match="frozen"):
        catalog.plans["basic"].tokens = 2


def test_a_gateway_without_numpy_can_rate():
    program = """
import sys
sys.modules.update(dict.fromkeys(["numpy", "pyarrow", "polars", "xxhash"]))
import tokenline.rating.book, tokenline.rating.tariff, tokenline.rating.diff, tokenline.cli.catalog
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
