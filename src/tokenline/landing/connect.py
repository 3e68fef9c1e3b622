"""Open clients of the warehouse, and part its errors into ours.

Embedded and server answer under one address, so this is the only place that knows how to reach
them.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import clickhouse_connect
import urllib3
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError, OperationalError

from tokenline.errors import BadData, MissingTables, SettingsError, WarehouseUnavailable
from tokenline.masking import without_secrets
from tokenline.texts import read_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clickhouse_connect.driver.client import Client

    from tokenline.settings import Settings

CONNECT_TIMEOUT_S = 5
ANSWER_TIMEOUT_S = 120

# ClickHouse's own codes of "not now": timeouts, memory, space, quorum, too many parts, shutting
# down.
PASSING_CODES = frozenset(
    {
        3,
        159,
        198,
        202,
        203,
        209,
        210,
        236,
        241,
        242,
        243,
        252,
        279,
        285,
        286,
        319,
        373,
        394,
        425,
        473,
        999,
        1000,
    }
)
# A disk that fills up while a part is written: whichever code the failed call has, there may be room again.
NO_ROOM = ("No space left on device", "Disk quota exceeded")
UNKNOWN_TABLE_CODES = frozenset({60, 81})
REFUSED_USER_CODES = frozenset({192, 193, 194, 492, 516})
ACCESS_DENIED = 497
_SERVER_SAID = re.compile(
    r"server response: (?:Code: \d+\. DB::Exception: )?(?P<words>.*?)(?: \(for url .*\))?$",
    re.DOTALL,
)


def connect(settings: Settings, *, database: str | None = None) -> Client:
    """Return a client that many threads may use at once.

    `database` becomes the default of queries that name none; it must exist. A user in the address
    wins over `clickhouse_username`.

    Raises:
        WarehouseUnavailable: nobody answers.
        SettingsError: the address, user or database is wrong.
    """
    url = settings.clickhouse_url
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise SettingsError(
            f"TOKENLINE_CLICKHOUSE_URL={without_secrets(url)!r} is not http(s)://host:port"
        )
    if settings.clickhouse_ca_file is not None:
        read_text(settings.clickhouse_ca_file, SettingsError)
    with warehouse_errors(f"connecting to {parts.hostname}"):
        return clickhouse_connect.get_client(
            host=parts.hostname,
            port=parts.port or (8443 if parts.scheme == "https" else 8123),
            secure=parts.scheme == "https",
            ca_cert=str(settings.clickhouse_ca_file) if settings.clickhouse_ca_file else None,
            username=unquote(parts.username or "") or settings.clickhouse_username,
            password=unquote(parts.password or "") or settings.clickhouse_password,
            database=database or "__default__",
            # On loopback compression only costs time that the line needs.
            compress=not is_loopback(parts.hostname),
            connect_timeout=CONNECT_TIMEOUT_S,
            send_receive_timeout=ANSWER_TIMEOUT_S,
            # A session admits one query at a time; threads share this client.
            autogenerate_session_id=False,
        )


def reading(client: Client) -> dict[str, int]:
    """Return the settings of a query that only reads; empty for a user who cannot do more."""
    known = client.server_settings.get("readonly")
    return {} if known is not None and known.value != "0" else {"readonly": 1}


@contextmanager
def warehouse_errors(doing: str) -> Iterator[None]:
    """Turn what the client raises inside into ours; `doing` starts the text.

    Raises:
        WarehouseUnavailable: nobody answered, or the answer was "not now"; trying again is right.
        MissingTables: the tables are not there.
        SettingsError: the user is refused or lacks a right.
        BadData: the warehouse refused the statement or the rows; trying again gives the same.
    """
    try:
        yield
    except (OperationalError, urllib3.exceptions.HTTPError, OSError) as error:
        raise WarehouseUnavailable(f"{doing}: {_words(error)}") from error
    except ClickHouseError as error:
        raise _ours(doing, error) from error


def is_loopback(host: str) -> bool:
    """Say whether this host is the machine itself."""
    return host in {"localhost", "::1"} or host.startswith("127.")


def _ours(doing: str, error: ClickHouseError) -> Exception:
    code = getattr(error, "code", None)
    said = f"{doing}: {_words(error)}"
    if (
        code in PASSING_CODES
        or (code is None and _is_gateway_trouble(error))
        or any(words in str(error) for words in NO_ROOM)
    ):
        return WarehouseUnavailable(said)
    if code in UNKNOWN_TABLE_CODES:
        return MissingTables(f"{said}; has `tokenline migrate apply` been run?")
    if code in REFUSED_USER_CODES:
        return SettingsError(
            f"{doing}: TOKENLINE_CLICKHOUSE_USERNAME or _PASSWORD is refused: {_words(error)}"
        )
    # A known user without the right: its role is wrong for what was asked.
    return SettingsError(said) if code == ACCESS_DENIED else BadData(said)


def _words(error: Exception) -> str:
    """Return what the server said, in one line, without what the client puts around it."""
    found = _SERVER_SAID.search(str(error))
    return " ".join((found["words"] if found else str(error)).split())


def _is_gateway_trouble(error: ClickHouseError) -> bool:
    """Say whether a proxy answered in place of ClickHouse, which always gives a code."""
    return (
        type(error) is DatabaseError
        and re.search(r"HTTP status (?:429|5\d\d)", str(error)) is not None
    )
