"""Tell whether one version of a schema may follow another; the rules are in schemas/README.md.

Both directions must hold: a new reader reads old records, because topics keep them for weeks, and
an old reader reads new records, because gateways and workers are never upgraded at one moment.
Avro's own resolution allows more (promotions, aliases); fewer rules are easier to keep in mind.
"""

from __future__ import annotations

from typing import Any


def problems(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return what forbids `new` to follow `old`, one sentence each; empty when nothing does."""
    found = [
        f"the record's {part} changed: {old.get(part)!r} to {new.get(part)!r}"
        for part in ("type", "name", "namespace")
        if old.get(part) != new.get(part)
    ]
    before = {field["name"]: field for field in old["fields"]}
    after = {field["name"]: field for field in new["fields"]}
    for name in before.keys() | after.keys():
        found += _field_problems(name, before.get(name), after.get(name))
    return sorted(found)


def untold(schema: dict[str, Any]) -> list[str]:
    """Return the fields that do not say what they mean or in which unit they count."""
    found = [] if schema.get("doc") else [f"record {schema['name']} has no doc"]
    for field in schema["fields"]:
        found += [
            f"{field['name']} has no {part}" for part in ("doc", "unit") if not field.get(part)
        ]
        found += [f"{field['name']}'s {text}" for text in _untold_items(field["type"])]
    return found


def _untold_items(kind: Any) -> list[str]:  # noqa: ANN401  Avro JSON is any JSON
    """Return what the records of an array do not say; what they are the array's own doc says."""
    items = kind.get("items") if isinstance(kind, dict) else None
    if not isinstance(items, dict) or _kind(items) != "record":
        return []
    return untold({"doc": "said"} | items)


def _field_problems(name: str, old: dict[str, Any] | None, new: dict[str, Any] | None) -> list[str]:
    if old is None:
        if new is None or "default" in new:
            return []
        return [f"{name} was added without a default: older records do not have it"]
    if new is None:
        if "default" in old:
            return []
        return [f"{name} was removed or renamed, and has no default: older readers need it"]
    if "default" in old and "default" not in new:
        return [f"{name} lost its default: older records may lack the field"]
    return _type_problems(name, old["type"], new["type"])


def _type_problems(name: str, old: Any, new: Any) -> list[str]:  # noqa: ANN401  Avro JSON is any JSON
    if _kind(old) != _kind(new) or not isinstance(old, dict):
        return [] if old == new else [f"{name} changed its type: {_show(old)} to {_show(new)}"]
    if old.get("logicalType") != new.get("logicalType"):
        return [f"{name} changed its logical type: {_show(old)} to {_show(new)}"]
    if _kind(old) == "enum":
        return _enum_problems(name, old, new)
    inner = {"map": "values", "array": "items"}.get(_kind(old))
    if inner:
        return _type_problems(f"{name}'s {inner}", old[inner], new[inner])
    return [] if old == new else [f"{name} changed its type: {_show(old)} to {_show(new)}"]


def _enum_problems(name: str, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    if old["name"] != new["name"]:
        return [f"{name}'s enum was renamed: {old['name']} to {new['name']}"]
    gone = [symbol for symbol in old["symbols"] if symbol not in new["symbols"]]
    if gone:
        return [f"{name} lost the symbols {gone}: older records use them"]
    if old["symbols"] == new["symbols"][: len(old["symbols"])]:
        added = new["symbols"][len(old["symbols"]) :]
        if added and "default" not in old:
            return [f"{name} got the symbols {added}, and older readers have no default for them"]
        return []
    return [f"{name}'s symbols were put in another order: add new ones at the end"]


def _kind(schema: Any) -> str:  # noqa: ANN401  as above
    if isinstance(schema, dict):
        return str(schema["type"])
    return "union" if isinstance(schema, list) else str(schema)


def _show(schema: Any) -> str:  # noqa: ANN401  as above
    if not isinstance(schema, dict):
        return str(schema)
    return f"{schema['type']}" + (f" ({logical})" if (logical := schema.get("logicalType")) else "")
