"""Read what a request of ClickHouse's HTTP interface says: who asks, for what, with which settings."""

from __future__ import annotations

import base64
import binascii
import zlib
from typing import TYPE_CHECKING

import cramjam
from aiohttp import web

from tokenline.platform import access, dialect
from tokenline.platform.access import Role
from tokenline.platform.dialect import RefusedStatementError
from tokenline.platform.engine import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from typing_extensions import Buffer

BODY_BYTES_MAX = 1 << 30
# Of queries: the engine takes 256 KiB of a reader, and of an auditor what `access.LIMITS` says.
BYTES_MAX = {Role.WRITER: BODY_BYTES_MAX, Role.AUDITOR: 16 << 20, Role.READER: 1 << 18}
# Parameters of the HTTP interface itself; every other one is a setting of the engine.
TRANSPORT = frozenset(
    (
        "query", "database", "default_format", "session_id", "session_timeout", "session_check",
        "query_id", "quota_key", "role", "user", "password", "compress", "decompress",
        "buffer_size", "wait_end_of_query", "client_protocol_version", "enable_http_compression",
        "send_progress_in_http_headers", "http_headers_progress_interval_ms",
        "cancel_http_readonly_queries_on_client_close",
    )
)  # fmt: skip
_UNPACK: dict[str, Callable[[bytes], Buffer]] = {
    "lz4": cramjam.lz4.decompress,
    "zstd": cramjam.zstd.decompress,
    "gzip": cramjam.gzip.decompress,
    "br": cramjam.brotli.decompress,
    "deflate": zlib.decompress,
}


def credentials(request: web.Request) -> tuple[str, str]:
    """Return user and password of the headers; those in an address would end up in logs."""
    user = request.headers.get("X-ClickHouse-User", "")
    if user:
        return user, request.headers.get("X-ClickHouse-Key", "")
    kind, _, packed = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() != "basic":
        return "", ""
    try:
        user, _, password = base64.b64decode(packed, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    return user, password


async def fields_of(request: web.Request, role: Role) -> tuple[Mapping[str, str], bytes]:
    """Return the parameters of URL and form, and the body if it is not a form.

    Raises:
        RefusedStatementError: the form holds a file.
        HTTPRequestEntityTooLarge: the body is longer than this role may send.
    """
    most = BYTES_MAX[role]
    fields = dict(request.query)
    if request.content_type not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        return fields, await _body(request, most)
    if not 0 <= (request.content_length or -1) <= most:
        raise web.HTTPRequestEntityTooLarge(max_size=most, actual_size=request.content_length or 0)
    for name, value in (await request.post()).items():
        if not isinstance(value, str):
            raise RefusedStatementError(48, "NOT_IMPLEMENTED", "External data is not supported")
        fields[name] = value
    return fields, b""


async def _body(request: web.Request, most: int) -> bytes:
    """Return the whole body; aiohttp's own way grows one buffer for it and copies that."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.content.iter_any():
        size += len(chunk)
        if size > most:
            raise web.HTTPRequestEntityTooLarge(max_size=most, actual_size=size)
        chunks.append(chunk)
    return b"".join(chunks)


def job_of(
    request: web.Request, role: Role, fields: Mapping[str, str], body: bytes, own: str
) -> Job:
    """Make the job of a request; unpacks and splits, so it runs off the event loop.

    `own` is the database of the line.

    Raises:
        RefusedStatementError: the statement, a setting or the database is not this role's to send.
    """
    asked = {
        name: value
        for name, value in fields.items()
        if name not in TRANSPORT and not name.startswith("param_")
    }
    # As ClickHouse: GET changes nothing, nor does who asks for readonly.
    only_reads = asked.pop("readonly", "0") != "0" or request.method == "GET"
    if only_reads and role is Role.WRITER:
        role = Role.AUDITOR
    body = _unpacked(body, request.headers.get("Content-Encoding", ""), role)
    query = fields.get("query", "").encode()
    database = str(fields.get("database") or request.headers.get("X-ClickHouse-Database", ""))
    return Job(
        statement=dialect.split(query, body) if query else dialect.split(body),
        role=role,
        database=_database(role, database, own),
        settings=tuple(sorted(access.settings_of(role, asked).items())),
        parameters={
            name.removeprefix("param_"): value
            for name, value in fields.items()
            if name.startswith("param_")
        },
        default_format=str(
            fields.get("default_format")
            or request.headers.get("X-ClickHouse-Format", "TabSeparated")
        ),
    )


def _database(role: Role, asked: str, own: str) -> str:
    """Return where bare names lead; a reader has one database."""
    if role is not Role.READER:
        return asked
    if asked not in ("", own):
        raise RefusedStatementError(497, "ACCESS_DENIED", f"a reader may not use {asked}")
    return own


def _unpacked(body: bytes, encoding: str, role: Role) -> bytes:
    if not encoding or encoding == "identity" or not body:
        return body
    unpack = _UNPACK.get(encoding) if role is Role.WRITER else None
    if unpack is None:
        # A query needs none, and little can become much.
        text = f"Unknown compression method: {encoding}"
        raise RefusedStatementError(89, "UNKNOWN_COMPRESSION_METHOD", text)
    try:
        return bytes(unpack(body))
    except (cramjam.DecompressionError, zlib.error) as error:
        text = f"Cannot unpack a body of encoding {encoding}: {error}"
        raise RefusedStatementError(354, "ZLIB_INFLATE_FAILED", text) from error
