"""Say what is different between two versions of the catalog, as people read it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tokenline.event import TOKEN_KINDS
from tokenline.rating.catalog import Catalog
from tokenline.rating.exact import NANO, UTOK, decimal_text
from tokenline.rating.offers import PlanLimit
from tokenline.rating.parts import Part
from tokenline.rating.rates import Rate

Facts = Mapping[str, str]
_HEAD = ("time_zone", "currency", "unknown_model")


@dataclass(frozen=True, slots=True)
class Change:
    """Hold one change: of a field of `place`, or with no field of all of it; "" is not there."""

    place: str
    field: str
    old: str
    new: str

    def __str__(self) -> str:
        if self.field:
            return f"{self.place}: {self.field} {self.old or 'none'} -> {self.new or 'none'}"
        return f"{self.place}: added: {self.new}" if self.new else f"{self.place}: removed"


def diff(old: Catalog | None, new: Catalog) -> list[Change]:
    """Return what `new` changes, in the order of the file; without an `old` one all of it is added."""
    before, after = _things(old) if old else {}, _things(new)
    places = [*after, *(place for place in before if place not in after)]
    return [
        change
        for place in places
        for change in _changes(place, before.get(place), after.get(place))
    ]


def dropped_plans(old: Catalog, new: Catalog) -> list[str]:
    """Return the plans that are sold no more."""
    return sorted(old.plans.keys() - new.plans.keys())


def _changes(place: str, old: Facts | None, new: Facts | None) -> Iterator[Change]:
    if old is None or new is None:
        yield Change(place, "", _summary(old), _summary(new))
        return
    for field in {**old, **new}:
        before, after = old.get(field, ""), new.get(field, "")
        if before != after:
            yield Change(place, field, before, after)


def _summary(facts: Facts | None) -> str:
    return ", ".join(f"{field} {text}" for field, text in (facts or {}).items() if text)


def _things(catalog: Catalog) -> Mapping[str, Facts]:
    """Return all that can be added, removed or changed, with its fields as text."""
    things: dict[str, dict[str, str]] = {
        "catalog": {
            "version": str(catalog.version),
            "effective_from": catalog.moment_text(catalog.effective_ms),
            **_facts(catalog, _HEAD),
        }
    }
    if catalog.default_rate:
        things["default_rate"] = _rate_facts(catalog.default_rate)
    for rate in catalog.rates:
        things[f"rates {rate}"] = _rate_facts(rate)
        if rate.applies_ms is not None:
            things[f"rates {rate}"]["applies_from"] = catalog.moment_text(rate.applies_ms)
    for name, members in sorted(catalog.groups.items()):
        things[f"groups.{name}"] = {"models": _text(members)}
    for kind, offers in (("plans", catalog.plans), ("packs", catalog.packs)):
        for name, offer in sorted(offers.items()):
            things[f"{kind}.{name}"] = _facts(offer, tuple(type(offer).model_fields))
    return things


def _facts(part: Part, names: tuple[str, ...]) -> dict[str, str]:
    return dict(_fact(name, getattr(part, name)) for name in names)


def _fact(name: str, value: object) -> tuple[str, str]:
    """Return a field as the file names and writes it."""
    if name.endswith("_nano"):
        said = f"{decimal_text(value, NANO)} yuan" if isinstance(value, int) else ""
        return {"fee_nano": "fee", "overage_nano": "overage_price"}[name], said
    return name, _text(value)


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, PlanLimit):
        of = value.subscriber or value.of
        words = [
            f"{value.ceiling:,} {value.unit} a {'rolling ' * value.rolling}{value.per} of {of}"
        ]
        return " ".join([*words, *([f"for {value.group}"] if value.group else [])])
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else str(value)


def _rate_facts(rate: Rate) -> dict[str, str]:
    kinds = zip(TOKEN_KINDS, rate.utok, strict=True)
    facts = {kind: decimal_text(utok, UTOK) for kind, utok in kinds}
    facts |= {
        f"a {unit}": decimal_text(utok, UTOK) for unit, utok in sorted(rate.units_utok.items())
    }
    return facts | {f"hours {hours}": f"times {hours.ratio}" for hours in rate.hours}
