"""Answer /healthz, /readyz and /metrics for one worker.

Healthy means progress, not life: a partition with lag whose position has not moved for `stall_s`
makes the worker unhealthy, because a Faust consumer can die and leave its process standing
(guard 21 of reference/faust.md). A worker that waits for a server is healthy and not ready.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from streams.readiness import Readiness

if TYPE_CHECKING:
    from tokenline.clock import Clock

# Name of a topic partition -> (first offset not yet done, records behind the end).
Positions = Mapping[str, tuple[int, int]]


@dataclass(slots=True)
class Stalls:
    """Remember when each position moved last."""

    stall_s: float
    _moved: dict[str, tuple[int, float]] = field(default_factory=dict)

    def stalled(self, positions: Positions, now_s: float) -> list[str]:
        """Return the partitions that have lag and have not moved for `stall_s`."""
        found = []
        for name, (offset, lag) in positions.items():
            before, since_s = self._moved.get(name, (-1, now_s))
            if lag == 0 or offset != before:
                self._moved[name] = (offset, now_s)
            elif now_s - since_s >= self.stall_s:
                found.append(f"{name} stands at {offset} with {lag} behind it")
        return found


@dataclass(slots=True)
class HealthServer:
    """Serve the three pages on `host:port`; port 0 takes a free one."""

    host: str
    port: int
    stall_s: float
    clock: Clock
    registry: CollectorRegistry
    positions: Callable[[], Positions]
    ready: Callable[[], Readiness]
    astray: Callable[[], list[str]]
    _runner: web.AppRunner | None = None
    _stalls: Stalls = field(init=False)

    def __post_init__(self) -> None:
        self._stalls = Stalls(self.stall_s)

    async def start(self) -> None:
        """Begin to serve.

        Raises:
            OSError: the port is taken.
        """
        app = web.Application()
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.host, self.port).start()

    async def stop(self) -> None:
        """Stop serving."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        positions = self.positions()
        stalled = self._stalls.stalled(positions, self.clock.monotonic_s())
        body = {
            "healthy": not stalled,
            **asdict(self.ready()),
            "stalled": stalled,
            # Nothing that a restart would mend, so it is not unhealthy.
            "astray": self.astray(),
            "lag": {name: lag for name, (_, lag) in positions.items()},
        }
        return web.json_response(body, status=503 if stalled else 200)

    async def _readyz(self, _: web.Request) -> web.Response:
        ready = self.ready()
        body = {**asdict(ready), "astray": self.astray()}
        return web.json_response(body, status=200 if ready.ready else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self.registry), content_type="text/plain")
