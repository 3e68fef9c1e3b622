"""Deliver the webhooks of one endpoint: in order per account, each until it arrives or is a dead letter.

What waits is bounded; a full endpoint holds its own reading back and nobody else's, because each
endpoint follows the decisions by itself.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import aiohttp
import structlog

from tokenline.notify.backoff import Answer, answer_of, retry_after_ms, wait_ms
from tokenline.notify.signing import sign

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tokenline.clock import Clock
    from tokenline.notify.endpoints import Endpoint
    from tokenline.notify.notification import Notification
    from tokenline.notify.signing import Secret
    from tokenline.settings import Settings

# Webhooks that may wait for one endpoint: 1 to 2 KB each.
WAITING_MAX = 10_000
AT_ONCE = 8
# Ids told lately: charging tells again after a crash, and the group brings again after a rebalance.
TOLD_MAX = 50_000
SAID_MAX = 200
USER_AGENT = "tokenline-webhooks/1"

_log = structlog.get_logger("tokenline.notify")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Hold one webhook and the decision it tells: its place, its key, its append time."""

    notification: Notification
    partition: int
    offset: int
    appended_ms: int
    key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """Hold a webhook that an endpoint could not be told, and why."""

    endpoint: str
    job: Job
    reason: str
    detail: str


@dataclass(slots=True)
class Counts:
    """Count what became of attempts and webhooks; `gone` is that the endpoint wants no more.

    `ignored` counts records of the decisions that are none.
    """

    delivered: int = 0
    failed: int = 0
    dead: int = 0
    ignored: int = 0
    gone: bool = False


class Acked(Protocol):
    """Be a micro-batch that can be acknowledged."""

    def ack(self) -> object:
        """Allow the offset behind it to be committed."""
        ...


@dataclass(slots=True)
class _Batch:
    """Hold a micro-batch whose webhooks are on their way; `left` counts those."""

    event: Acked
    left: int


class Deliveries:
    """Own what waits for one endpoint.

    `bury` writes a dead letter and returns when the broker has it. An error in any task goes to
    `fatal`; nothing of it was acknowledged, so it is told after the start.
    """

    def __init__(
        self,
        settings: Settings,
        endpoint: Endpoint,
        secrets: Sequence[Secret],
        clock: Clock,
        bury: Callable[[Letter], Awaitable[None]],
        fatal: Callable[[BaseException], None],
        step: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.endpoint = endpoint
        self.counts = Counts()
        self.waiting = 0
        self._life = 0
        self._settings, self._secrets, self._clock = settings, tuple(secrets), clock
        self._bury, self._fatal, self._step = bury, fatal, step
        self._lanes: dict[tuple[str, str], deque[tuple[Job, _Batch]]] = {}
        self._batches: dict[int, deque[_Batch]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._told: OrderedDict[str, None] = OrderedDict()
        self._room = asyncio.Condition()
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._not_before_s = 0.0
        self._session: aiohttp.ClientSession | None = None

    @property
    def full(self) -> bool:
        """Say whether nothing more is taken until something was told."""
        return self.waiting >= WAITING_MAX

    async def offer(self, event: Acked, partition: int, jobs: Sequence[Job]) -> None:
        """Take the webhooks of one micro-batch; waits while too many are waiting."""
        fresh = [job for job in jobs if job.notification.message_id not in self._told]
        batch, life = _Batch(event, len(fresh)), self._life
        self._batches.setdefault(partition, deque()).append(batch)
        for job in fresh:
            async with self._room:
                await self._room.wait_for(lambda: not self.full or life != self._life)
            if life != self._life:
                return  # it was dropped with the rest
            self._enter(job, batch)
        self._acknowledge(partition)

    async def drop(self) -> None:
        """Forget all that waits: what is not acknowledged comes again."""
        self._life += 1
        tasks, self._tasks = self._tasks, set()
        # Before anything is waited for: what is offered meanwhile belongs to the next life.
        self._lanes, self._batches, self.waiting = {}, {}, 0
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with self._room:
            self._room.notify_all()

    async def close(self) -> None:
        """Forget all that waits and let go of connections."""
        await self.drop()
        if self._session is not None:
            await self._session.close()

    def _enter(self, job: Job, batch: _Batch) -> None:
        self.waiting += 1
        lane = self._lanes.get(job.notification.key)
        if lane is not None:
            lane.append((job, batch))
            return
        self._lanes[job.notification.key] = deque([(job, batch)])
        task = asyncio.create_task(self._guarded(job.notification.key))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, key: tuple[str, str]) -> None:
        try:
            await self._work_off(key)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  the worker's edge: a webhook must not end unseen
            self._fatal(error)

    async def _work_off(self, key: tuple[str, str]) -> None:
        """Tell what waits for one account, in order."""
        lane = self._lanes[key]
        while lane:
            job, batch = lane[0]
            # The same decision twice in one fetch: it is told once.
            if job.notification.message_id not in self._told:
                await self._tell(job)
            lane.popleft()
            batch.left -= 1
            self.waiting -= 1
            self._acknowledge(job.partition)
            async with self._room:
                self._room.notify()
        del self._lanes[key]

    async def _tell(self, job: Job) -> None:
        attempt, said = 0, "the endpoint is gone"
        while not self.counts.gone:
            attempt += 1
            await self._pause()
            async with self._turns:
                answer, said, asked_ms = await self._attempt(job)
            self._step("attempt")
            if answer is Answer.DELIVERED:
                return self._note_told(job)
            self.counts.failed += 1
            if answer is Answer.GONE:
                self._stop_for_good(said)
                break
            age_ms = self._clock.wall_ms() - job.appended_ms
            if age_ms >= self._settings.webhook_max_age_s * 1000:
                break
            await self._wait(job, attempt, asked_ms, said)
        reason = "webhook_gone" if self.counts.gone else "webhook_undelivered"
        detail = f"attempts of this process: {attempt}; the last: {said}"
        name = self.endpoint.name
        await self._bury(Letter(endpoint=name, job=job, reason=reason, detail=detail))
        self.counts.dead += 1
        self._remember(job)
        self._step("buried")
        return None

    async def _attempt(self, job: Job) -> tuple[Answer, str, int]:
        """Post once; return what it means, in words too, and for how long the receiver asks to wait, in ms."""
        note, now_ms = job.notification, self._clock.wall_ms()
        headers = sign(self._secrets, note.message_id, now_ms // 1000, note.body)
        headers |= {"content-type": "application/json", "user-agent": USER_AGENT}
        try:
            async with self._client().post(
                self.endpoint.url, data=note.body, headers=headers, allow_redirects=False
            ) as answer:
                status = answer.status
                asked = retry_after_ms(answer.headers.get("retry-after", ""), now_ms)
        except TimeoutError:
            return Answer.RETRY, f"no answer in {self._settings.webhook_timeout_ms} ms", 0
        # ValueError: a header or an address that aiohttp cannot use.
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Answer.RETRY, type(error).__name__, 0
        return answer_of(status), f"HTTP {status}"[:SAID_MAX], asked

    async def _pause(self) -> None:
        """Wait while the receiver has asked for patience: it means all that we send."""
        while (rest_s := self._not_before_s - self._clock.monotonic_s()) > 0:  # noqa: ASYNC110  a moment, no event
            await asyncio.sleep(rest_s)

    async def _wait(self, job: Job, attempt: int, asked_ms: int, said: str) -> None:
        settings, note = self._settings, job.notification
        own_ms = wait_ms(
            attempt, note.message_id, settings.webhook_retry_first_ms, settings.webhook_retry_max_ms
        )
        left_ms = job.appended_ms + settings.webhook_max_age_s * 1000 - self._clock.wall_ms()
        if asked_ms:
            until_s = self._clock.monotonic_s() + asked_ms / 1000
            self._not_before_s = max(self._not_before_s, until_s)
        level = _log.warning if attempt == 1 else _log.debug
        level("webhook failed", endpoint=self.endpoint.name, id=note.message_id,
              attempt=attempt, said=said, again_ms=own_ms)  # fmt: skip
        # The last attempt is at the bound of its age.
        await asyncio.sleep(max(min(own_ms, left_ms), 0) / 1000)

    def _note_told(self, job: Job) -> None:
        self.counts.delivered += 1
        self._remember(job)
        self._step("told")

    def _remember(self, job: Job) -> None:
        self._told[job.notification.message_id] = None
        if len(self._told) > TOLD_MAX:
            self._told.popitem(last=False)

    def _stop_for_good(self, said: str) -> None:
        self.counts.gone = True
        _log.error("endpoint wants no more webhooks: they become dead letters until a restart",
                   endpoint=self.endpoint.name, said=said)  # fmt: skip

    def _acknowledge(self, partition: int) -> None:
        """Acknowledge from the front what is done, and keep one of those done behind what is not."""
        batches = self._batches.get(partition, deque())
        last: _Batch | None = None
        while batches and batches[0].left == 0:
            last = batches.popleft()
        if last is not None:
            last.event.ack()
            self._step("ack")
        # A fetch without webhooks holds its records: behind one that waits for hours they would pile up.
        while len(batches) >= 2 and batches[-1].left == batches[-2].left == 0:
            del batches[-2]

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=self._settings.webhook_timeout_ms / 1000)
            # No cookies of one answer in the next request, no proxy from the environment unasked for.
            self._session = aiohttp.ClientSession(
                timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._session
