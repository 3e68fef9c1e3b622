"""Read just enough of a ClickHouse statement to route it: no parsing of expressions.

Says where an INSERT's statement ends and its data begins, and whether more than one statement
came. Comments, strings and quoted names are stepped over. What may be run is not for it to say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tokenline.errors import TokenlineError

_TOKEN = re.compile(
    rb"""
      (?P<skip>\s+ | --[^\n]* | \#[!\ ][^\n]* | /\*.*?\*/ )
    | (?P<quoted>'(?:[^'\\]|\\.)*' | (?P<tag>\$[A-Za-z0-9_]*\$).*?(?P=tag)
                | `(?:[^`\\]|\\.)*` | "(?:[^"\\]|\\.)*")
    | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_READS = frozenset(
    ("SELECT", "WITH", "FROM", "SHOW", "DESCRIBE", "DESC", "EXISTS", "EXPLAIN", "CHECK", "VALUES")
)
# These change the connection, which is shared: they get one of their own.
_CONNECTION = frozenset(("SET", "USE"))


class RefusedStatementError(TokenlineError):
    """Refuse a statement as the server would: a ClickHouse error code, its name and a text."""

    def __init__(self, code: int, name: str, text: str) -> None:
        super().__init__(f"Code: {code}. DB::Exception: {text}. ({name})")
        self.code = code


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement, split from the data behind it."""

    sql: bytes
    """The statement; for an INSERT with data, without FORMAT clause and data."""
    verb: str
    """Its first word, in capitals."""
    format: str | None
    """The FORMAT it names, if any."""
    data: bytes | memoryview | None
    """What follows FORMAT or VALUES of an INSERT; None if this is not an INSERT with data."""

    @property
    def reads(self) -> bool:
        """Whether the statement can have a result and changes nothing."""
        return self.verb in _READS

    @property
    def changes_connection(self) -> bool:
        """Whether the statement leaves something behind in its connection."""
        return self.verb in _CONNECTION


def split(text: bytes, body: bytes | None = None) -> Statement:
    """Split a statement from its data; `body` is data sent apart from the statement.

    Raises:
        RefusedStatementError: it is empty, holds two statements, or names files of this machine.
    """
    words = _Words(text)
    verb = words.verb
    if not verb:
        raise RefusedStatementError(62, "SYNTAX_ERROR", "Empty query")
    if verb == "INSERT":
        return _insert(text, words, body)
    words.read_all()
    if words.outfile:
        raise RefusedStatementError(48, "NOT_IMPLEMENTED", "INTO OUTFILE is not allowed over HTTP")
    if body:
        text = text + b"\n" + body
    return Statement(text, verb, words.format, None)


def require_no_insert(statement: Statement) -> None:
    """Check that a statement brings no rows: without their data the engine could not write it down.

    Raises:
        RefusedStatementError: it is an INSERT.
    """
    if statement.verb == "INSERT":
        raise RefusedStatementError(164, "READONLY", "INSERT: only queries are allowed")


def _insert(text: bytes, words: _Words, body: bytes | None) -> Statement:
    """Split at the first FORMAT or VALUES that stands outside quotes and brackets."""
    words.read_all(until_data=True)
    if words.infile:
        raise RefusedStatementError(48, "NOT_IMPLEMENTED", "FROM INFILE is not allowed over HTTP")
    if words.data_at is None or (words.format == "Values" and not body):
        words.read_all()
        return Statement(text, "INSERT", None, None)
    inline = memoryview(text)[words.data_at :]
    data = bytes(inline) + body if body and inline else body or inline
    return Statement(text[: words.clause_at], "INSERT", words.format, data)


class _Words:
    """Step through a statement's words at the top level."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self._ended = self._in_settings = False
        self.format: str | None = None
        self.clause_at: int | None = None
        self.data_at: int | None = None
        self.infile = self.outfile = False
        self.verb = self._first()

    def _first(self) -> str:
        while match := _TOKEN.match(self._text, self._at):
            self._at = match.end()
            if match.lastgroup == "word":
                return match.group().decode().upper()
            if match.lastgroup == "quoted" or (match.lastgroup == "other" and match[0] != b"("):
                return ""
            self._depth += match[0] == b"("
        return ""

    def read_all(self, *, until_data: bool = False) -> None:
        """Read to the end, or to where an INSERT's data begins."""
        before = ""
        while match := _TOKEN.match(self._text, self._at):
            self._at = match.end()
            if match.lastgroup == "skip":
                continue
            if self._ended:
                raise RefusedStatementError(62, "SYNTAX_ERROR", "Multi-statements are not allowed")
            word = match[0].decode(errors="replace").upper()
            if match.lastgroup == "word" and self._depth == 0:
                self._note(before, word, match.start())
                if until_data and self._reaches_data(before, word, match.start()):
                    return
            elif match.lastgroup == "other":
                self._punctuation(word)
            before = word

    def _note(self, before: str, word: str, at: int) -> None:
        self.infile |= before == "FROM" and word == "INFILE"
        self.outfile |= before == "INTO" and word == "OUTFILE"
        self._in_settings |= word == "SETTINGS"
        if before == "FORMAT":
            self.format = self._text[at : self._at].decode()
        elif not self._in_settings:
            self.format = None  # the word FORMAT was a column's name

    def _punctuation(self, mark: str) -> None:
        self._depth += (mark in "([{") - (mark in ")]}")
        self._ended = mark == ";" and self._depth == 0

    def _reaches_data(self, before: str, word: str, at: int) -> bool:
        if word == "SELECT" or (before == "FROM" and word == "INFILE"):
            return True
        if word == "VALUES":
            self.format, self.clause_at, self.data_at = "Values", at, self._at
            return True
        if word == "FORMAT":
            self.clause_at = at
        elif before == "FORMAT":
            self.data_at = _after_line(self._text, self._at)
            return True
        return False


def _after_line(text: bytes, at: int) -> int:
    """Step over blanks and one line end, as the server does between FORMAT and data."""
    match = re.compile(rb"[ \t\r]*;?[ \t\r]*\n?").match(text, at)
    return match.end() if match else at
