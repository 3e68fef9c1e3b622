"""Wait for the servers a worker needs before it begins; one that is away ends no worker.

What is asked is what the first minutes need: a broker that answers and has the topics, a schema registry,
a warehouse with its tables. A server that goes away later is waited for where it is used.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
from aiokafka.errors import KafkaError

from tokenline.clock import SystemClock
from tokenline.errors import BrokerUnavailable, MissingTables, SettingsError, Unavailable
from tokenline.settings import variable
from tokenline.wire.topics import require_topics

if TYPE_CHECKING:
    from tokenline.settings import Settings

WAIT_FIRST_S = 0.5
WAIT_MAX_S = 5.0
CONNECT_S = 3.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Server:
    """Name a server and how to `ask` whether it is there: it raises `Unavailable` while it is not."""

    name: str
    ask: Callable[[], Awaitable[object]]


class ServerWait:
    """Wait for servers, one after the other; `why` says what for, empty when for none."""

    def __init__(
        self, servers: Sequence[Server], sleep: Callable[[float], Awaitable[object]]
    ) -> None:
        self.why = ""
        self._servers = servers
        self._sleep = sleep
        self._clock = SystemClock()

    async def run(self, stopped: Callable[[], bool]) -> None:
        """Return when all are there, or when `stopped` says so."""
        for server in self._servers:
            await self._wait(server, stopped)
        self.why = ""

    async def _wait(self, server: Server, stopped: Callable[[], bool]) -> None:
        began_s, wait_s = self._clock.monotonic_s(), WAIT_FIRST_S
        while not stopped() and not await self._there(server):
            await self._sleep(wait_s)
            wait_s = min(2 * wait_s, WAIT_MAX_S)
        if self.why and not stopped():
            waited_s = round(self._clock.monotonic_s() - began_s, 1)
            log.info("the server is there", server=server.name, waited_s=waited_s)
            self.why = ""

    async def _there(self, server: Server) -> bool:
        try:
            with _quiet_clients():
                await server.ask()
        except (Unavailable, MissingTables, KafkaError, OSError) as error:
            self._note(server, error)
            return False
        return True

    def _note(self, server: Server, error: Exception) -> None:
        """Keep the reason; a new one is logged, the same again is not."""
        why = f"waits for {server.name}: {error}"
        if why != self.why:
            log.warning("a server is away; the worker waits", server=server.name, why=str(error))
        self.why = why


def kafka(settings: Settings, stems: Sequence[str]) -> Server:
    """Return Kafka, which is there when it answers and has the topics of these stems."""

    async def ask() -> None:
        await reach(settings)
        await require_topics(settings, stems)

    return Server(f"Kafka at {settings.kafka_bootstrap}", ask)


async def reach(settings: Settings) -> None:
    """Connect to one of the bootstrap servers.

    aiokafka would say "unable to bootstrap", and the reason in lines of its own.

    Raises:
        BrokerUnavailable: none can be reached; the text says why.
        SettingsError: an address has no port.
    """
    reasons = []
    for host, port in map(_place, settings.kafka_bootstrap.split(",")):
        try:
            async with asyncio.timeout(CONNECT_S):
                _, writer = await asyncio.open_connection(host, port)
        except OSError as error:
            reasons.append(_in_words(error))
        else:
            writer.close()
            return
    raise BrokerUnavailable("; ".join(dict.fromkeys(reasons)))


def _place(address: str) -> tuple[str, int]:
    host, _, port = address.strip().rpartition(":")
    if not host or not port.isdigit():
        name = variable("kafka_bootstrap")
        raise SettingsError(f"{name}: {address.strip()!r} is not host:port, as in 127.0.0.1:9092")
    return host.strip("[]"), int(port)


def _in_words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {CONNECT_S:.0f} s"
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split())


@contextmanager
def _quiet_clients() -> Iterator[None]:
    """Keep aiokafka from telling each attempt in lines of its own."""
    client = logging.getLogger("aiokafka")
    before = client.level
    client.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        client.setLevel(before)
