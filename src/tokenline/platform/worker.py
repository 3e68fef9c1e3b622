"""Run one worker process: `python -m tokenline.platform.worker charging|landing|notify`.

Exit codes are in `streams/README.md`. Settings come from the environment.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Literal

from tokenline.errors import PlatformError, SettingsError, TokenlineError
from tokenline.extras import missing_extra
from tokenline.masking import without_secrets
from tokenline.platform.stdio import never_fail
from tokenline.settings import Settings
from tokenline.workers import application

if TYPE_CHECKING:
    from collections.abc import Sequence

Role = Literal["charging", "landing", "notify"]
ROLES: tuple[Role, ...] = ("charging", "landing", "notify")
CRASH_GRACE_S = 10.0
LAST_TURN_S = 0.05
EXIT_STUCK = 70


def run(role: Role, settings: Settings) -> None:
    """Run a worker until it is asked to stop; ends the process.

    Raises:
        PlatformError: the worker extra is not installed, or the data directory cannot be made.
    """
    # Loading takes seconds; who is asked to stop meanwhile has nothing to finish.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    sys.meta_path.insert(0, _NoPandas())
    try:
        _use_uvloop()
        import faust  # noqa: PLC0415  slow, and only workers have it

        build_app = application().build_app
    except ModuleNotFoundError as error:
        raise missing_extra(error, "worker") or error from error
    never_fail()
    _make_data_dir(settings)
    app = build_app(role, settings)
    threading.Thread(target=_insist_on_end, args=(app,), daemon=True).start()
    worker = faust.Worker(
        app, loglevel=settings.log_level, redirect_stdouts=False, daemon=True, quiet=True
    )
    worker._sentinel_task = _last_turn
    code: object = 0
    try:
        worker.execute_from_commandline()
    except SystemExit as ended:
        code = ended.code
    reason = app.crash_reason or worker.crash_reason
    if reason is not None:
        crashed = without_secrets(repr(reason))
        print(f"{role} worker crashed: {crashed}", file=sys.stderr, flush=True)
        code = 1
    _end(code if isinstance(code, int) else 1)


def _end(code: int) -> None:
    """End without unloading: libraries with threads of their own may crash while Python takes itself down."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _make_data_dir(settings: Settings) -> None:
    """Make what Faust only makes if its parent is there; it keeps nothing of ours in it."""
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        variable = "TOKENLINE_DATA_DIR"
        raise PlatformError(f"cannot make {variable}={settings.data_dir}: {error}") from error


class _NoPandas:
    """Keep pandas out: Arrow imports it with the first array it makes, 2 s and 60 MB for nothing.

    A None in `sys.modules` would not do: compiled code takes it for the module, and breaks on it.
    """

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> None:
        """Say that there is no pandas; leave all else to the finders behind."""
        if name == "pandas":
            raise ModuleNotFoundError("a worker does without pandas", name=name)


def _use_uvloop() -> None:
    """Choose the loop before Faust is imported; the standard one will do."""
    import mode.loop  # noqa: PLC0415  must come first

    try:
        mode.loop.use("uvloop")
    except ImportError:
        mode.loop.use("aio")


async def _last_turn() -> None:
    """Let cancelled tasks end before the loop is closed; mode would sleep for a second here."""
    await asyncio.sleep(LAST_TURN_S)


def _insist_on_end(app: Any) -> None:  # noqa: ANN401  Faust has no types
    """End the process if it lives on after a crash: Faust can hang in its own shutdown."""
    while not app.crashed:
        time.sleep(0.5)
    time.sleep(CRASH_GRACE_S)
    print(f"the worker could not stop: {app.crash_reason!r}", file=sys.stderr, flush=True)
    os._exit(EXIT_STUCK)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; return the exit code of a start that failed."""
    parser = argparse.ArgumentParser(prog="tokenline.platform.worker")
    parser.add_argument("role", choices=ROLES)
    role: Role = parser.parse_args(argv).role
    try:
        run(role, Settings.from_env())
    except SettingsError as error:
        print(f"{role} worker: {without_secrets(str(error))}", file=sys.stderr)
        return 2
    except TokenlineError as error:
        print(f"{role} worker: {without_secrets(str(error))}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
