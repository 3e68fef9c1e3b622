"""Compose a worker: the one place where settings become real parts.

    faust -A tokenline.workers:charging worker        tokenline worker charging
    faust -A tokenline.workers:landing worker         tokenline worker landing
    faust -A tokenline.workers:notify worker          tokenline worker notify

The wheel carries this folder as `tokenline._streams`; `tokenline.workers` finds it in either place.

Nothing is built at import: `charging`, `landing` and `notify` are made when they are first asked for.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import structlog

from streams.credentials import faust_credentials
from streams.health import HealthServer
from streams.line_app import LineApp
from streams.memory import keep_giving_back
from streams.records import hand_over_raw_records
from streams.servers import kafka
from tokenline.clock import SystemClock
from tokenline.errors import FencedOut, SettingsError, TokenlineError
from tokenline.masking import mask_logs, without_secrets
from tokenline.platform.stdio import never_fail
from tokenline.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

Role = Literal["charging", "landing", "notify"]
ROLES: tuple[Role, ...] = ("charging", "landing", "notify")

EXIT_SETTINGS = 2
EXIT_FATAL = 70  # EX_SOFTWARE
EXIT_FENCED = 75  # EX_TEMPFAIL: start again, another worker took the partition
EXIT_CODES = {
    FencedOut: EXIT_FENCED,
    SettingsError: EXIT_SETTINGS,
}

log = structlog.get_logger(__name__)


def build_app(role: Role, settings: Settings) -> LineApp:
    """Return the Faust app of a role, with its agents and its health pages."""
    mask_logs()
    # A line for each connection, whose password travels as the operator has set it up.
    logging.getLogger("aiokafka.conn").setLevel(logging.ERROR)
    app = _patient_app(settings, role) if role == "notify" else _line_app(role, settings)
    hand_over_raw_records()
    register: Callable[..., Any]
    if role == "charging":
        from streams.charging import register  # noqa: PLC0415  a landing worker needs no charging, nor the reverse
    elif role == "landing":
        from streams.landing import register  # noqa: PLC0415
    else:
        from streams.notify import register as notify  # noqa: PLC0415

        register = partial(notify, companion=partial(_patient_app, settings))
    worker = register(app, settings, end_process)
    app.wait_for(kafka(settings, worker.TOPICS), *worker.servers())
    app.keep_running(keep_giving_back)
    _serve_health(app, role, settings, worker)
    return app


def _patient_app(settings: Settings, name: str) -> LineApp:
    """Return an app of the notify role: a receiver may be away for as long as it likes."""
    return _line_app(
        name,
        settings,
        # A heartbeat a second wakes it anyway; nothing here is worth forty looks a second.
        fetch_wait_ms=500,
        fetch_min_bytes=1,
        broker_max_poll_interval=settings.webhook_max_age_s + 3600.0,
    )


def _line_app(name: str, settings: Settings, **options: Any) -> LineApp:
    # Faust makes its own folder but not the one that holds it.
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    common: dict[str, Any] = dict(  # noqa: C408  as the call it is
        broker=_brokers(settings),
        broker_credentials=faust_credentials(settings),
        store="memory://",
        datadir=settings.data_dir / "faust",
        autodiscover=False,
        web_enabled=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        topic_partitions=settings.partitions,
        consumer_auto_offset_reset="earliest",
        broker_max_poll_records=settings.max_chunk_records,
        consumer_max_fetch_size=4 << 20,
        broker_commit_interval=1.0,
        broker_session_timeout=settings.session_timeout_ms / 1000,
        broker_heartbeat_interval=settings.session_timeout_ms / 4000,
        broker_request_timeout=max(30.0, settings.session_timeout_ms / 1000 + 5),
        broker_max_poll_interval=300.0,
        broker_rebalance_timeout=max(10.0, settings.session_timeout_ms / 1000),
        producer_request_timeout=30.0,
        # Steps in flight are finished by the lines themselves; the offset guard skips what is read again.
        stream_wait_empty=False,
    )
    return LineApp(f"{settings.topic_prefix}{name}", fatal=end_process, **common | options)


def end_process(error: BaseException) -> None:
    """Say why and end the process at once; what was not durable is done again after the start.

    Faust may hang when an agent fails (r#301), so there is no way back through it.
    """
    code = next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), EXIT_FATAL)
    try:
        log.critical("worker ends", error=f"{type(error).__name__}: {error}", exit_code=code)
        if not isinstance(error, TokenlineError):
            # Plain: the pretty one shows local variables, and those may hold a password.
            print(without_secrets("".join(traceback.format_exception(error))), file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        # Also when it cannot be told: a worker that lives on without its flows looks well and does nothing.
        os._exit(code)


def _serve_health(app: LineApp, role: Role, settings: Settings, worker: Any) -> None:
    server = HealthServer(
        host=settings.health_host,
        port=getattr(settings, f"{role}_health_port"),
        stall_s=settings.stall_s,
        clock=SystemClock(),
        registry=worker.metrics.registry,
        positions=lambda: worker.positions(app) if app.joined else {},
        ready=lambda: app.standing() or worker.ready(app),
        astray=worker.astray,
    )
    app.run_first(server.start, server.stop)


def _brokers(settings: Settings) -> list[str]:
    return [f"kafka://{server.strip()}" for server in settings.kafka_bootstrap.split(",")]


def __getattr__(name: str) -> LineApp:
    """Build the app of a role, or `app` (the role in TOKENLINE_ROLE), when it is asked for."""
    asked = os.environ.pop("TOKENLINE_ROLE", "charging") if name == "app" else name
    role = next((role for role in ROLES if role == asked), None)
    if role is None:
        raise AttributeError(name)
    never_fail()
    return build_app(role, Settings.from_env())
