"""Hold charging against a model that shares no line with it, on random walks.

`TOKENLINE_COMMERCE_WALKS` walks more than the tests do; a failure prints its seed and the shortest script.
"""

from __future__ import annotations

import os

import pytest

from tests.hostile.commerce_walk import check

WALKS = int(os.environ.get("TOKENLINE_COMMERCE_WALKS", "24"))
STEPS = 60


@pytest.mark.parametrize("seed", range(WALKS))
def test_engine_and_independent_model_agree_on_every_balance_and_answer(seed):
    check(seed, STEPS)
