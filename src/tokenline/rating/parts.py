"""Share what all parts of a catalog are made of: how they are checked, and names.

A part can be read from the file, as people write it, and from JSON, which has integers only: the
file's `fee = "9.9"` is JSON's `fee_nano = 9900000000`. The names differ, so that neither is ever
taken for the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from tokenline.names import why_bad

# A million million: as µtok 10^18, of which nine fit an int64.
TOKENS_MAX = 10**12


class Part(BaseModel):
    """Be a part of a catalog: never changed, nothing unknown in it, no type taken for another."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def listed(said: object) -> object:
    """Return a list as the tuple that a frozen part holds."""
    return tuple(said) if isinstance(said, list) else said


def checked_name(name: str) -> str:
    """Return a name that keeps the rule of `tokenline.names`.

    Raises:
        ValueError: it does not.
    """
    if why := why_bad(name):
        raise ValueError(f"{name[:64]!r} {why}")
    return name


def _ascending(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) != len(names):
        raise ValueError("a name stands twice")
    return tuple(sorted(names))


Listed = BeforeValidator(listed)
Name = Annotated[str, AfterValidator(checked_name)]
# A set of names; sorted, because the order in which a file lists them means nothing.
Names = Annotated[tuple[Name, ...], Listed, AfterValidator(_ascending)]
Tokens = Annotated[int, Field(ge=0, le=TOKENS_MAX)]


def renamed(said: Any, old: str, new: str, read: Callable[[object], object]) -> Any:  # noqa: ANN401
    """Return `said` with the file's `old` read and named `new`; as it is where it has no `old`.

    Raises:
        ValueError: `old` is wrong, or both are there.
    """
    if not isinstance(said, dict) or old not in said:
        return said
    if new in said:
        raise ValueError(f"{old} and {new} say the same: only one of them may be given")
    rest = {name: value for name, value in said.items() if name != old}
    return {**rest, new: named(old, read, said[old])}


def named(name: str, read: Callable[[object], object], said: object) -> Any:  # noqa: ANN401
    """Return what `read` makes of `said`.

    Raises:
        ValueError: it is wrong; the text begins with `name`.
    """
    try:
        return read(said)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
