"""Lead to the stream workers: the folder `streams` of a checkout, or what the wheel carries of it.

    faust -A tokenline.workers:charging worker        tokenline worker charging
    faust -A tokenline.workers:landing worker         tokenline worker landing
    faust -A tokenline.workers:notify worker          tokenline worker notify

The wheel has them as `tokenline._streams`, for `streams` is a name that others may have too. Nothing
is built at import.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

PACKED = "tokenline._streams"


def application() -> ModuleType:
    """Return the module that builds workers, wherever it is.

    Raises:
        ModuleNotFoundError: the worker extra is not installed.
    """
    if find_spec(PACKED) is not None:
        # Within it they import each other as `streams`.
        sys.modules["streams"] = import_module(PACKED)
    return import_module("streams.app")


def __getattr__(name: str) -> Any:  # noqa: ANN401  Faust has no types
    """Build the app of a role when it is asked for."""
    if name.startswith("_"):
        raise AttributeError(name)
    return getattr(application(), name)
