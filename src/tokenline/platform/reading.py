"""Check what a read-only query names: an allow-list of functions, of system tables and of formats.

The text checked is not what the client sent. The engine parses that and writes it down again
(`formatQuery`), without comments, heredocs and odd quoting; this canonical text is both checked
and run. In it every function is an identifier, wherever it stands (window, lambda, APPLY,
argument of another function). So there is one rule: what is called must be on the list, and no
identifier may be the name of a function that is not. The line's tables, sources outside the
warehouse, DDL and settings are refused by the engine itself: see `access`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from tokenline.platform.dialect import RefusedStatementError

_TOKEN = re.compile(
    rb"""
      (?P<space>[ \n]+)
    | (?P<text>'(?:[^'\\]++|\\.|'')*+')
    | (?P<parameter>\{[A-Za-z_][A-Za-z0-9_]*:[^{}]*\})
    | (?P<quoted>`(?:[^`\\]++|\\.|``)*+`)
    | (?P<word>[A-Za-z_][A-Za-z0-9_$]*)
    | (?P<number>[0-9][0-9A-Za-z_.]*)
    | (?P<mark>->|::|-(?!-)|/(?![*/])|[][()+*%<>=!|?:,.^&~])
    """,
    re.VERBOSE | re.DOTALL,
)
# Words of the grammar that a bracket may follow; the canonical text has them in capitals.
GRAMMAR = frozenset(
    (
        "ALL", "AND", "ANY", "AS", "BETWEEN", "BY", "COLUMNS", "CUBE", "DISTINCT", "EXCEPT", "FROM",
        "HAVING", "ILIKE", "IN", "INTERPOLATE", "INTERSECT", "JOIN", "LIKE", "LIMIT", "MATERIALIZED",
        "NOT", "OFFSET", "ON", "OR", "OVER", "PREWHERE", "QUALIFY", "REPLACE", "ROLLUP", "SELECT",
        "SETS", "STALENESS", "STEP", "TABLE", "TO", "UNION", "USING", "WHERE",
    )
)  # fmt: skip
# What people call aggregate functions with. Those that read or write states are left out.
COMBINATORS = (
    "If", "Array", "Map", "OrNull", "OrDefault", "Distinct", "ForEach", "ArgMin", "ArgMax",
)  # fmt: skip
SYSTEM_DATABASES = frozenset(("system", "information_schema"))
# What clients ask first, and people of what they may see; the engine lists nothing else in them.
SYSTEM_TABLES = frozenset(
    ("system", name) for name in ("columns", "databases", "one", "settings", "tables")
)
# Formats that write an answer and read nothing; others take a schema from a file.
FORMATS = frozenset(
    (
        "Arrow", "ArrowStream", "CSV", "CSVWithNames", "CSVWithNamesAndTypes", "JSON", "JSONColumns",
        "JSONColumnsWithMetadata", "JSONCompact", "JSONCompactColumns", "JSONCompactEachRow",
        "JSONCompactEachRowWithNames", "JSONCompactEachRowWithNamesAndTypes", "JSONCompactStrings",
        "JSONEachRow", "JSONStrings", "JSONStringsEachRow", "Markdown", "Native", "Null", "Parquet",
        "Pretty", "PrettyCompact", "PrettyCompactNoEscapes", "PrettyNoEscapes", "RowBinary",
        "RowBinaryWithNames", "RowBinaryWithNamesAndTypes", "TSV", "TSVRaw", "TSVWithNames",
        "TSVWithNamesAndTypes", "TabSeparated", "TabSeparatedRaw", "TabSeparatedWithNames",
        "TabSeparatedWithNamesAndTypes", "Values", "Vertical", "XML",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reading:
    """A query that was checked: its canonical text without FORMAT, and the format that it names."""

    sql: bytes
    format: str | None


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    at: int
    raw: bytes

    @property
    def name(self) -> str:
        """What a word or a quoted identifier says; empty for all else."""
        if self.kind == "word":
            return self.raw.decode()
        return self.raw[1:-1].decode(errors="replace") if self.kind == "quoted" else ""


_END = _Token("end", 0, b"")


class Gate:
    """Let queries through that only read, by the names in them.

    Arguments:
        functions: all functions of the engine; those that are not on the list may not be named.
    """

    def __init__(self, functions: Collection[str]) -> None:
        self._refused = {name.lower() for name in functions} - allowed_functions()

    def check(self, canonical: bytes) -> Reading:
        """Return the query as it may be run.

        Raises:
            RefusedStatementError: it is no query, or names what no query may; the text says it.
        """
        tokens = _tokens(canonical)
        _require_query(tokens)
        reading = Reading(canonical, None)
        if len(tokens) > 2 and tokens[-2].raw == b"FORMAT":
            reading = _with_format(canonical, tokens[-2], tokens[-1])
            tokens = tokens[:-2]
        for before, token, after, later in zip(
            (_END, *tokens), tokens, (*tokens[1:], _END), (*tokens[2:], _END, _END), strict=False
        ):
            _check_clause(before, token)
            if token.name:
                self._check_name(token.name, after, later)
        return reading

    def _check_name(self, name: str, after: _Token, later: _Token) -> None:
        if after.raw == b"(":
            if name not in GRAMMAR and not is_allowed(name):
                raise _denied(f"a query may not call {name}()")
        elif name.lower() in self._refused:
            raise _denied(f"a query may not name {name}, which is a function of the engine")
        if (
            name.lower() in SYSTEM_DATABASES
            and after.raw == b"."
            and (name, later.name) not in SYSTEM_TABLES
        ):
            raise _denied(f"a query may not read {name}.{later.name}")


def listed_functions() -> list[str]:
    """Return the functions that a query may use, as the list has them."""
    text = files("tokenline.platform").joinpath("functions.txt").read_text(encoding="utf-8")
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return [word for line in lines for word in line.split()]


@cache
def allowed_functions() -> frozenset[str]:
    """Return the functions that a query may use, in lower case."""
    return frozenset(map(str.lower, listed_functions()))


def is_allowed(name: str) -> bool:
    """Say whether a query may call this function, or it with combinators."""
    return name.lower() in allowed_functions() or any(
        is_allowed(name.removesuffix(end)) for end in COMBINATORS if name.endswith(end)
    )


def _tokens(canonical: bytes) -> list[_Token]:
    found: list[_Token] = []
    at = 0
    while at < len(canonical):
        match = _TOKEN.match(canonical, at)
        if match is None:
            near = canonical[at : at + 12].decode(errors="replace")
            raise _denied(f"a query may not hold {near!r}")
        if match.lastgroup == "parameter" and b"identifier" in match[0].lower():
            raise _denied("a parameter may not be an Identifier")
        if match.lastgroup != "space":
            found.append(_Token(str(match.lastgroup), at, match[0]))
        at = match.end()
    return found


def _require_query(tokens: Sequence[_Token]) -> None:
    words = [token.name for token in tokens[:2]]
    if words[:1] in (["SELECT"], ["WITH"], ["DESCRIBE"]):
        return
    if words not in (["SHOW", "TABLES"], ["SHOW", "DATABASES"]):
        raise RefusedStatementError(
            164, "READONLY", f"{' '.join(words)}: only queries are allowed, and this is none"
        )


def _with_format(canonical: bytes, clause: _Token, named: _Token) -> Reading:
    if named.name not in FORMATS:
        raise _denied(f"a query may not ask for the format {named.name}")
    return Reading(canonical[: clause.at], named.name)


def _check_clause(before: _Token, token: _Token) -> None:
    """Check that no clause leads out of a query."""
    pair = (before.raw, token.raw)
    if token.raw == b"SETTINGS":
        raise RefusedStatementError(164, "READONLY", "a query may not change settings")
    if pair == (b"INTO", b"OUTFILE"):
        raise _denied("a query may not write INTO OUTFILE")
    if pair == (b"PARALLEL", b"WITH"):
        raise _denied("a query may not run PARALLEL WITH another statement")


def _denied(text: str) -> RefusedStatementError:
    return RefusedStatementError(497, "ACCESS_DENIED", text)
