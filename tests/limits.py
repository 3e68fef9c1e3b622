"""A catalog whose plans have limits of all kinds."""

from __future__ import annotations

import tomllib

from tokenline.rating.catalog import Catalog

LIMITS_CATALOG = Catalog.model_validate(
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

[plans.family]
title = "A pool with a cap for each"
fee = "9.9"
tokens = 100
mode = "strict"
proration = "full"
subscriber_tokens = 30

[plans.loose]
title = "A pool without caps"
fee = "9.9"
tokens = 100
mode = "strict"
proration = "full"

[plans.granted]
title = "A hold that nobody settles is charged whole"
fee = "9.9"
tokens = 100
mode = "strict"
proration = "full"
subscriber_tokens = 30
hold_expiry = "charge_granted"

[plans.limited]
title = "Limits of all kinds"
fee = "9.9"
tokens = 1000
mode = "strict"
proration = "full"
subscriber_tokens = 60
limits = [
    { utok = 50_000_000, per = "week" },
    { requests = 6, per = "minute", rolling = true },
    { utok = 20_000_000, per = "hour", group = "minis" },
    { tokens = 40, per = "day", of = "subscriber" },
    { tokens = 10, per = "day", of = "subscriber", subscriber = "kid" },
    { utok = 25_000_000, per = "hour", of = "subscriber", rolling = true },
    { requests = 40, per = "cycle" },
]

[packs.own]
title = "For one alone"
fee = "1"
tokens = 10
valid_days = 30
priority = 1
shared = false
"""
    )
)
