"""Build what waits on the commands topic, and a small catalog to ask by."""

from __future__ import annotations

import tomllib
from typing import Any

from tokenline.charging.step import Commanded
from tokenline.rating.catalog import Catalog

CATALOG = Catalog.model_validate(
    tomllib.loads(
        """
version = 1
effective_from = 2026-10-01T00:00:00+08:00
time_zone = "Asia/Shanghai"
currency = "CNY"
unknown_model = "reject"

[[rates]]
provider = "p"
model = "max"
input_tokens = 1
output_tokens = 2

[[rates]]
provider = "p"
model = "mini"
input_tokens = "0.1"
output_tokens = "0.25"

[groups]
minis = ["p/mini"]

[plans.strict]
title = "Strict"
fee = "39.9"
tokens = 310
mode = "strict"
rollover_tokens = 50

[plans.postpaid]
title = "Postpaid"
fee = "9.9"
tokens = 100
mode = "postpaid"
used_up = "overage"
overage_price = "2.5"

[plans.small]
title = "Small models only"
fee = "1"
tokens = 62
mode = "prepaid"
groups = ["minis"]
hold_expiry = "charge_granted"
hold_validity_s = 30

[plans.limited]
title = "Two calls a minute"
fee = "1"
tokens = 310
mode = "postpaid"
subscriber_tokens = 5
thresholds = [90]
unreachable = "leases"
limits = [{ requests = 2, per = "minute" }, { tokens = 1000, per = "week" }]

[plans.household]
title = "A pool with caps"
fee = "1"
tokens = 310
mode = "strict"
subscriber_tokens = 60
hold_validity_s = 30
hold_expiry = "charge_granted"
limits = [
    { utok = 20_000_000, per = "minute", of = "subscriber", rolling = true },
    { utok = 30_000_000, per = "hour", group = "minis" },
    { requests = 9, per = "week" },
]

[packs.coupon]
title = "A coupon"
fee = "1"
tokens = 20
valid_days = 1
"""
    )
)


def catalog_version(offset: int, appended_ms: int, catalog: Catalog) -> Commanded:
    """Return the command that brings a catalog to a partition."""
    fields = {"version": catalog.version, "catalog": catalog.to_json()}
    return Commanded(offset=offset, appended_ms=appended_ms, fields=fields, name="catalog_version")


def tick(offset: int, appended_ms: int) -> Commanded:
    """Return a tick of the partition's clock."""
    fields = {"partition": 0, "written_at": appended_ms, "epoch": 1}
    return Commanded(offset=offset, appended_ms=appended_ms, fields=fields, name="clock_tick")


def order(offset: int, appended_ms: int, **fields: Any) -> Commanded:
    """Return an order of account `t/a`; `fields` say what is different from nothing."""
    plain: dict[str, Any] = {
        "tenant_id": "t",
        "account_id": "a",
        "command_id": f"c{offset}",
        "plan": "",
        "time_zone": "Asia/Shanghai",
        "cycle_day": 1,
        "pack": "",
        "amount_utok": 0,
        "source": "top_up",
        "bucket": 0,
        "priority": 100,
        "valid_from": 0,
        "valid_to": 0,
        "models": [],
        "subscribers": [],
        "transferable": False,
        "to_account": "",
        "from_account": "",
        "from_entry": 0,
        "transfer_id": "",
        "uncap": 0,
        "when": "",
        "valid_days": 0,
        "issued_at": appended_ms,
        "reply_to": "",
        "reply_partition": -1,
    }
    return Commanded(
        offset=offset, appended_ms=appended_ms, fields=plain | fields, name="account_order"
    )


def hold_order(offset: int, appended_ms: int, **fields: Any) -> Commanded:
    """Return a question of session `s1` of account `t/a`."""
    plain: dict[str, Any] = {
        "tenant_id": "t",
        "account_id": "a",
        "session": "s1",
        "seq": 0,
        "action": "hold",
        "subscriber_id": "",
        "provider": "p",
        "model": "max",
        "lease": False,
        "prompt_tokens": 0,
        "max_tokens": 0,
        "wanted_utok": 0,
        "reported_utok": 0,
        "reserved_utok": 0,
        "first_utok": 0,
        "keep_utok": 0,
        "reply_to": "",
        "reply_partition": -1,
    }
    return Commanded(
        offset=offset, appended_ms=appended_ms, fields=plain | fields, name="hold_order"
    )
