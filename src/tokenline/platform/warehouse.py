"""Serve one chDB directory over the HTTP dialect of ClickHouse, on loopback.

`python -m tokenline.platform.warehouse --data DIR --port N`. Enough of the dialect for
unmodified `clickhouse_connect.get_client(host=..., port=...)`. What it is not: it has no users
or sessions (each request stands alone), does not compress its answers, holds an answer in
memory before it sends it, and refuses to listen anywhere but on loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import os
import signal
import sys
import threading
import uuid
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import cramjam
from aiohttp import web

from tokenline.errors import PlatformError, TokenlineError
from tokenline.platform import dialect, processes
from tokenline.platform.engine import Engine, EngineError, Job, Result
from tokenline.platform.headroom import RoomyEngine
from tokenline.platform.launch import die_with_parent
from tokenline.platform.stdio import never_fail

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from typing_extensions import Buffer

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

VARIABLE = "TOKENLINE_CLICKHOUSE_URL"
BODY_BYTES_MAX = 1 << 30
EXIT_AGAIN = 75  # EX_TEMPFAIL: start again
# An insert is tens of megabytes: at aiohttp's 64 KiB its socket would be paused 1,000 times.
READ_BYTES = 1 << 20
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
# As ClickHouse's HTTPHandler maps them; the rest are 500. None of these is one that
# clickhouse-connect sends again on its own.
STATUS = {
    403: (164, 497),
    404: (36, 46, 47, 50, 56, 60, 81, 115),
    400: (6, 26, 27, 38, 41, 42, 43, 44, 48, 53, 62, 72, 117, 130, 386, 456, 457),
}
_STATUS_OF = {code: status for status, codes in STATUS.items() for code in codes}


class Warehouse:
    """Answer HTTP requests with one engine.

    Inserts and reads have threads of their own, so that a long read never holds an insert up.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reads = ThreadPoolExecutor(4, "read")
        self._writes = ThreadPoolExecutor(2, "write")

    def application(self) -> web.Application:
        """Return the web application."""
        app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[refuse_browsers])
        app.router.add_get("/ping", self.ping)
        app.router.add_route("*", "/", self.answer)
        return app

    async def ping(self, _request: web.Request) -> web.Response:
        """Say that the process lives."""
        return web.Response(text="Ok.\n")

    async def answer(self, request: web.Request) -> web.Response:
        """Run the statement of one request."""
        query_id = request.query.get("query_id") or str(uuid.uuid4())
        try:
            fields, body = await _fields(request)
            job = await asyncio.to_thread(_job, request, fields, body)
            pool = self._reads if job.statement.reads else self._writes
            result = await asyncio.get_running_loop().run_in_executor(pool, self._engine.run, job)
        except (dialect.RefusedStatementError, EngineError) as error:
            return _refusal(error.code, str(error), query_id)
        return _success(job, result, query_id)

    def close(self) -> None:
        """Let running statements end, then close the engine."""
        self._writes.shutdown()
        self._reads.shutdown()
        self._engine.close()


@web.middleware
async def refuse_browsers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what a web page could send: there is no password to keep it out."""
    host = request.host.rsplit(":", 1)[0].strip("[]")
    if not is_loopback(host) or "Origin" in request.headers:
        return _refusal(497, "Code: 497. DB::Exception: Loopback clients only. (ACCESS_DENIED)", "")
    return await handler(request)


def is_loopback(host: str) -> bool:
    """Say whether a host name or address can only mean this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _fields(request: web.Request) -> tuple[Mapping[str, str], bytes]:
    """Return the parameters of URL and form, and the body if it is not a form."""
    fields = dict(request.query)
    if request.content_type not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        return fields, await _body(request)
    for name, value in (await request.post()).items():
        if not isinstance(value, str):
            raise dialect.RefusedStatementError(
                48, "NOT_IMPLEMENTED", "External data is not supported"
            )
        fields[name] = value
    return fields, b""


async def _body(request: web.Request) -> bytes:
    """Return the whole body; aiohttp's own way grows one buffer for it and copies that."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.content.iter_any():
        size += len(chunk)
        if size > BODY_BYTES_MAX:
            raise web.HTTPRequestEntityTooLarge(max_size=BODY_BYTES_MAX, actual_size=size)
        chunks.append(chunk)
    return b"".join(chunks)


def _job(request: web.Request, fields: Mapping[str, str], body: bytes) -> Job:
    """Make the job of a request; unpacks and splits, so it runs off the event loop."""
    body = _unpacked(body, request.headers.get("Content-Encoding", ""))
    query = fields.get("query", "").encode()
    statement = dialect.split(query, body) if query else dialect.split(body)
    settings = {
        name: value
        for name, value in fields.items()
        if name not in TRANSPORT and not name.startswith("param_")
    }
    if request.method == "GET":
        settings.setdefault("readonly", "2")  # as ClickHouse: GET changes nothing
    if settings.get("readonly", "0") != "0":
        dialect.require_readonly(statement)
    return Job(
        statement=statement,
        database=str(fields.get("database") or request.headers.get("X-ClickHouse-Database", "")),
        settings=tuple(sorted(settings.items())),
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


def _unpacked(body: bytes, encoding: str) -> bytes:
    if not encoding or encoding == "identity" or not body:
        return body
    unpack = _UNPACK.get(encoding)
    if unpack is None:
        text = f"Unknown compression method: {encoding}"
        raise dialect.RefusedStatementError(89, "UNKNOWN_COMPRESSION_METHOD", text)
    try:
        return bytes(unpack(body))
    except (cramjam.DecompressionError, zlib.error) as error:
        text = f"Cannot unpack a body of encoding {encoding}: {error}"
        raise dialect.RefusedStatementError(354, "ZLIB_INFLATE_FAILED", text) from error


def _success(job: Job, result: Result, query_id: str) -> web.Response:
    summary = {
        "read_rows": result.read_rows,
        "read_bytes": result.read_bytes,
        "written_rows": result.written_rows,
        "written_bytes": result.written_bytes,
    }
    headers = _headers(query_id) | {
        "X-ClickHouse-Summary": json.dumps({name: str(value) for name, value in summary.items()}),
    }
    if job.statement.reads:
        headers["X-ClickHouse-Format"] = job.statement.format or job.default_format
    return web.Response(body=result.body, headers=headers, content_type="application/octet-stream")


def _refusal(code: int, text: str, query_id: str) -> web.Response:
    headers = _headers(query_id) | {"X-ClickHouse-Exception-Code": str(code)}
    return web.Response(status=_STATUS_OF.get(code, 500), text=text + "\n", headers=headers)


def _headers(query_id: str) -> dict[str, str]:
    return {
        "X-ClickHouse-Server-Display-Name": "tokenline",
        "X-ClickHouse-Query-Id": query_id,
        "X-ClickHouse-Timezone": "UTC",
    }


async def serve(engine: Engine, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT; running statements are let end.

    Raises:
        PortTaken: another process holds the port.
    """
    processes.require_port(port, "the warehouse", VARIABLE)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    warehouse = Warehouse(engine)
    # Bodies are unpacked by `_unpacked`: aiohttp knows no lz4.
    runner = web.AppRunner(
        warehouse.application(),
        access_log=None,
        auto_decompress=False,
        read_bufsize=READ_BYTES,
    )
    await runner.setup()
    await web.TCPSite(runner, host, port, shutdown_timeout=5).start()
    try:
        await stop.wait()
    finally:
        await runner.cleanup()
        await asyncio.to_thread(warehouse.close)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and serve; return the exit code."""
    parser = argparse.ArgumentParser(prog="tokenline.platform.warehouse")
    parser.add_argument("--data", type=Path, required=True, help="chDB's directory")
    parser.add_argument("--host", default=processes.LOOPBACK, help="a loopback address")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--die-with-parent", action="store_true")
    options = parser.parse_args(argv)
    never_fail()
    again = threading.Event()

    def restart() -> None:
        print("warehouse: the disk was full; every part is looked at anew", file=sys.stderr)
        again.set()
        os.kill(os.getpid(), signal.SIGTERM)

    try:
        if not is_loopback(options.host):
            raise PlatformError(f"{options.host} is not loopback; the warehouse has no passwords")
        if options.die_with_parent:
            die_with_parent(os.getppid())
        os.environ["TZ"] = "UTC"  # chDB takes the host's zone for its own
        options.data.mkdir(parents=True, exist_ok=True)
        engine = RoomyEngine(options.data, restart)
        asyncio.run(serve(engine, options.host, options.port))
    except TokenlineError as error:
        print(f"warehouse: {error}", file=sys.stderr)
        return 1
    return EXIT_AGAIN if again.is_set() else 0


if __name__ == "__main__":
    sys.exit(main())
