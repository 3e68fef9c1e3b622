"""Keep the one rule for names: of tenants, accounts, subscribers, events, sources, models, orders.

A name is text that a person can read aloud, a log line can carry, and a key can be made of: 1 to 256
bytes of UTF-8, without control characters (NUL and line breaks among them), without characters that
nobody sees or that turn text around (zero width, bidi), without line and paragraph separators, and
without white space around it. A tenant has no slash besides, because keys are `tenant/account`, and
does not begin with a tilde, because the line's own keys do. A provider has no slash either and no model
is called *, because models are named `provider/model` and all of a provider `provider/*`.

Every entrance asks this module: events, orders, commands, files, catalogs, gateways.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NAME_MAX_BYTES = 256
# Of an event: what must be there, and what may be empty.
EVENT_NAMES = ("tenant_id", "account_id", "source", "event_id", "gateway_id", "provider", "model")
EVENT_NAMES_OR_NONE = ("subscriber_id", "gateway_epoch", "hold_id", "corrects")
# Of a command; what must be there is known to whoever carries it out.
COMMAND_NAMES = (
    *("tenant_id", "account_id", "command_id", "reply_to", "session", "plan", "pack"),
    *("to_account", "from_account", "transfer_id", "subscriber_id", "provider", "model"),
)
_KINDS = {
    "Cc": "a control character",
    "Cf": "a character that nobody sees",
    "Cs": "half a character",
    "Zl": "a line separator",
    "Zp": "a paragraph separator",
}


@lru_cache(maxsize=65_536)
def why_bad(name: str) -> str:
    """Return why a text is no name, to stand behind what it is the name of; empty when it is one."""
    if not name:
        return "is empty"
    if not name.isascii() and (half := _first_of(name, ("Cs",))):
        return half
    size = len(name.encode())
    if size > NAME_MAX_BYTES:
        return f"has {size} bytes, and a name has {NAME_MAX_BYTES} at most"
    # What is printable has nothing of what is looked for: nearly all names.
    if not name.isprintable() and (found := _first_of(name, tuple(_KINDS))):
        return found
    return "has white space around it" if name != name.strip() else ""


def why_bad_of(field: str, name: str) -> str:
    """Return why a text cannot be in this field, to stand behind the field's name; empty when it can."""
    if field in ("tenant_id", "provider") and "/" in name:
        return f"has a slash, so {'a key' if field == 'tenant_id' else 'it'} could mean another"
    if field == "tenant_id" and name.startswith("~"):
        return "begins with ~, as the line's own keys do"
    if field == "model" and name == "*":
        return "is *, which means all of a provider"
    return why_bad(name)


def bad_names(fields: Mapping[str, object]) -> Iterator[str]:
    """Yield what is wrong with each name of a command, with the field's name; nearly always nothing.

    Of a name that is not there nothing is said. `models` are provider/model, or provider/*.
    """
    for field in COMMAND_NAMES:
        if (name := str(fields.get(field, ""))) and (why := why_bad_of(field, name)):
            yield f"{field} {why}"
    for field in ("subscribers", "models"):
        listed = fields.get(field, ())
        for one in listed if isinstance(listed, list | tuple) else ():
            # A provider has no slash: the first one parts it from its model.
            parts = str(one).split("/", 1) if field == "models" else [str(one)]
            if found := next(filter(None, map(why_bad, parts)), ""):
                yield f"one of {field} {found}"


def _first_of(name: str, kinds: tuple[str, ...]) -> str:
    for char in name:
        if (kind := unicodedata.category(char)) in kinds:
            return f"has U+{ord(char):04X}, {_KINDS[kind]}"
    return ""
