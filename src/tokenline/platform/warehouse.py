"""Serve one chDB directory over the HTTP dialect of ClickHouse, on loopback.

`python -m tokenline.platform.warehouse --data DIR --port N`. Enough of the dialect for
unmodified `clickhouse_connect.get_client(host=..., port=...)`. Who asks says a role and its
password (see `access`); only /ping is open. What it is not: it has no sessions (each request stands
alone), does not compress its answers, holds an answer in memory before it sends it, and
refuses to listen anywhere but on loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import ipaddress
import json
import os
import signal
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aiohttp import web

from tokenline.errors import PlatformError, SettingsError, TokenlineError
from tokenline.platform import processes
from tokenline.platform.access import Role
from tokenline.platform.dialect import RefusedStatementError
from tokenline.platform.engine import Engine, EngineError, Job, Result
from tokenline.platform.headroom import RoomyEngine
from tokenline.platform.launch import die_with_parent
from tokenline.platform.secrets import read_secrets
from tokenline.platform.stdio import never_fail
from tokenline.platform.warehouse_request import (
    BODY_BYTES_MAX,
    credentials,
    fields_of,
    job_of,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from concurrent.futures import Future

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

VARIABLE = "TOKENLINE_CLICKHOUSE_URL"
EXIT_AGAIN = 75  # EX_TEMPFAIL: start again
# So many statements of one role wait; who comes then is told to come again.
WAITING_MAX = 64
READERS, WRITERS = 4, 2
KILL_EVERY_S = 0.05
# An insert is tens of megabytes: at aiohttp's 64 KiB its socket would be paused 1,000 times.
READ_BYTES = 1 << 20
# As ClickHouse's HTTPHandler maps them; the rest are 500. None of these is one that
# clickhouse-connect sends again on its own.
STATUS = {
    403: (164, 497, 516),
    404: (36, 46, 47, 50, 56, 60, 81, 115),
    400: (6, 26, 27, 38, 41, 42, 43, 44, 48, 53, 62, 72, 117, 130, 386, 456, 457),
}
_STATUS_OF = {code: status for status, codes in STATUS.items() for code in codes}


class Warehouse:
    """Answer HTTP requests with one engine.

    Inserts, and the reads of each role, have threads of their own: no long read holds up an insert
    or the reads of another role. A read whose client has gone is ended.
    """

    def __init__(self, engine: Engine, passwords: Mapping[str, str]) -> None:
        self._engine = engine
        self._passwords = {str(role): passwords[role] for role in Role}
        self._reads = {role: _Pool(READERS, f"read-{role}") for role in Role}
        self._writes = _Pool(WRITERS, "write")
        self._endings: set[asyncio.Task[None]] = set()

    def application(self) -> web.Application:
        """Return the web application."""
        app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[refuse_browsers])
        app.router.add_get("/ping", self.ping)
        app.router.add_route("GET", "/", self.answer)
        app.router.add_route("POST", "/", self.answer)
        return app

    async def ping(self, _request: web.Request) -> web.Response:
        """Say that the process lives."""
        return web.Response(text="Ok.\n")

    async def answer(self, request: web.Request) -> web.Response:
        """Run the statement of one request."""
        query_id = request.query.get("query_id") or str(uuid.uuid4())
        try:
            role = self._role(request)
            fields, body = await fields_of(request, role)
            job = await asyncio.to_thread(
                job_of, request, role, fields, body, self._engine.database
            )
            result = await self._run(job)
        except (RefusedStatementError, EngineError) as error:
            return _refusal(error.code, str(error), query_id)
        return _success(job, result, query_id)

    def close(self) -> None:
        """Let running statements end, then close the engine."""
        self._writes.threads.shutdown()
        for pool in self._reads.values():
            pool.threads.shutdown()
        self._engine.close()

    def _role(self, request: web.Request) -> Role:
        """Return who asks."""
        user, password = credentials(request)
        known = self._passwords.get(user, "")
        if not hmac.compare_digest(password.encode(), known.encode()) or not known:
            raise RefusedStatementError(
                516,
                "AUTHENTICATION_FAILED",
                "Authentication failed: user or password is wrong "
                "(tokenline status --secrets shows them)",
            )
        return Role(user)

    async def _run(self, job: Job) -> Result:
        reads = job.only_reads or job.statement.reads
        pool = self._reads[job.role] if reads else self._writes
        running = pool.submit(self._engine, job)
        try:
            return await asyncio.wrap_future(running)
        except asyncio.CancelledError:
            if job.only_reads and not running.done():
                ending = asyncio.create_task(self._end(job, running))
                self._endings.add(ending)
                ending.add_done_callback(self._endings.discard)
            raise

    async def _end(self, job: Job, running: Future[Result]) -> None:
        """End a read that nobody waits for; asks again, as it may only be about to begin."""
        while not running.done():
            await asyncio.to_thread(self._engine.end, job)
            await asyncio.sleep(KILL_EVERY_S)


class _Pool:
    """Threads for one kind of statement, first come, first served, with a bound on who waits."""

    def __init__(self, size: int, name: str) -> None:
        self.threads = ThreadPoolExecutor(size, name)
        self._most = size + WAITING_MAX
        self._inside = 0

    def submit(self, engine: Engine, job: Job) -> Future[Result]:
        """Run a job when its turn comes; called on the event loop."""
        if self._inside >= self._most:
            raise RefusedStatementError(
                202, "TOO_MANY_SIMULTANEOUS_QUERIES", f"{self._inside} statements run or wait"
            )
        self._inside += 1
        loop = asyncio.get_running_loop()
        running = self.threads.submit(engine.run, job)
        running.add_done_callback(lambda _: loop.call_soon_threadsafe(self._leave))
        return running

    def _leave(self) -> None:
        self._inside -= 1


@web.middleware
async def refuse_browsers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what a web page could send, whatever it knows."""
    host = request.host.rsplit(":", 1)[0].strip("[]")
    by_browser = any(
        name == "origin" or name.startswith("sec-fetch-")
        for name in map(str.lower, request.headers)
    )
    if by_browser or not is_loopback(host):
        return _refusal(497, "Code: 497. DB::Exception: Loopback clients only. (ACCESS_DENIED)", "")
    return await handler(request)


def is_loopback(host: str) -> bool:
    """Say whether a host name or address can only mean this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def loopback_port(address: str, variable: str) -> int:
    """Return the port of a loopback address.

    Raises:
        SettingsError: it is no loopback address, or has no port.
    """
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if port is None or not is_loopback(parts.hostname or ""):
        raise SettingsError(
            f"{variable}={address!r}: `up` runs its own servers; this must be loopback with a port"
        )
    return port


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
        headers["X-ClickHouse-Format"] = job.statement.format or result.format
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


async def serve(engine: Engine, passwords: Mapping[str, str], host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT; running statements are let end.

    Raises:
        PortTaken: another process holds the port.
    """
    processes.require_port(port, "the warehouse", VARIABLE)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    warehouse = Warehouse(engine, passwords)
    # Bodies are unpacked by `_unpacked`: aiohttp knows no lz4.
    runner = web.AppRunner(
        warehouse.application(),
        access_log=None,
        auto_decompress=False,
        handler_cancellation=True,
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
    parser.add_argument("--secrets", type=Path, required=True, help="folder of secrets.json")
    parser.add_argument("--database", default="tokenline", help="whose views a reader may see")
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
            raise PlatformError(f"{options.host} is not loopback; the warehouse speaks no TLS")
        if options.die_with_parent:
            die_with_parent(os.getppid())
        os.environ["TZ"] = "UTC"  # chDB takes the host's zone for its own
        options.data.mkdir(parents=True, exist_ok=True)
        os.umask(processes.PRIVATE_UMASK)
        passwords = read_secrets(options.secrets).get("warehouse", {})
        engine = RoomyEngine(options.data, restart, database=options.database)
        asyncio.run(serve(engine, passwords, options.host, options.port))
    except TokenlineError as error:
        print(f"warehouse: {error}", file=sys.stderr)
        return 1
    return EXIT_AGAIN if again.is_set() else 0


if __name__ == "__main__":
    sys.exit(main())
