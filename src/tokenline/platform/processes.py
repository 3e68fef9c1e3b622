"""Start and end processes, and find ports; nothing here knows what the processes do."""

from __future__ import annotations

import os
import queue
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tokenline.errors import PlatformError, PortTaken
from tokenline.platform import identity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

LOOPBACK = "127.0.0.1"
LAUNCH = Path(__file__).with_name("launch.py")
PORT_LOW, PORT_COUNT = 20_000, 12_000
LOG_BYTES_MAX = 16 * 1024 * 1024
LOCK = "tokenline.lock"
# What the line keeps is its owner's alone.
PRIVATE_UMASK = 0o077


class _Spawner:
    """Start every child on one thread that lives as long as this process.

    Linux kills a tied child when the *thread* that started it ends, so a child started on a
    pool thread would die with the pool.
    """

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="tokenline-spawner", daemon=True).start()

    def _serve(self) -> None:
        while True:
            self._jobs.get()()

    def popen(
        self, argv: Sequence[str], env: Mapping[str, str] | None, log: int, lock: int
    ) -> _Child:
        answer: queue.SimpleQueue[_Child | OSError] = queue.SimpleQueue()

        def job() -> None:
            try:
                answer.put(_popen(argv, env, log, lock))
            except OSError as error:
                answer.put(error)

        self._jobs.put(job)
        child = answer.get()
        if isinstance(child, OSError):
            raise child
        return child


_Child = subprocess.Popen[bytes]
_spawner: _Spawner | None = None
_spawner_lock = threading.Lock()


def _popen(argv: Sequence[str], env: Mapping[str, str] | None, log: int, lock: int) -> _Child:
    """Start in a session of its own: a Ctrl-C on the terminal is for the supervisor alone.

    The child takes the lock with it, and holds it as long as it lives.
    """
    return subprocess.Popen(
        tied(argv),
        env=None if env is None else dict(env),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=(lock,),
        start_new_session=True,
        umask=PRIVATE_UMASK,
    )


def tied(argv: Sequence[str]) -> list[str]:
    """Return the command that runs `argv` and ends when the thread that starts it does (see `_Spawner`)."""
    return [sys.executable, "-I", "-S", str(LAUNCH), str(os.getpid()), *argv]


def spawn(argv: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None) -> _Child:
    """Start a program tied to this process; its output is appended to `log`.

    `argv[0]` is an absolute path. A log over 16 MiB is first renamed to `.1`. The program holds the lock
    file beside its log, so that one that outlives its supervisor can be found and ended.

    Raises:
        PlatformError: the program could not be started, or one started before with this log runs still.
    """
    global _spawner  # noqa: PLW0603  one thread a process, made on first use
    with _spawner_lock:
        if _spawner is None or _spawner.owner != os.getpid():
            _spawner = _Spawner()
        spawner = _spawner
    try:
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
            log.replace(log.with_name(log.name + ".1"))
        with open(log, "ab", opener=identity.private) as sink, _locked(lock_of(log)) as lock:
            child = spawner.popen(argv, env, sink.fileno(), lock.fileno())
            identity.sign(lock, identity.process_of(child.pid))
    except OSError as error:
        raise PlatformError(f"cannot start {argv[0]}: {error}") from error
    return child


def lock_of(log: Path) -> Path:
    """Return the lock file that a program with this log holds."""
    return log.with_suffix(".lock")


def _locked(path: Path) -> IO[str]:
    handle = identity.take(path)
    if handle is None:
        raise PlatformError(f"what was started before runs still, and holds {path}")
    return handle


def end_orphans(logs: Iterable[Path]) -> list[int]:
    """End the programs that hold the lock files of these logs; return their pids.

    Only for who holds the data directory: then whoever started them is dead.

    Raises:
        PlatformError: one cannot be ended.
    """
    try:
        return [pid for log in logs if (pid := identity.end_holder(lock_of(log)))]
    except (OSError, TimeoutError) as error:
        raise PlatformError(f"a process that a dead stack left cannot be ended: {error}") from error


def end(process: _Child, grace_s: float) -> int:
    """Ask a child to end, insist after `grace_s` seconds, return its exit code."""
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def kill(process: _Child) -> None:
    """End a child with SIGKILL and reap it."""
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.wait()


def hold(folder: Path, what: str) -> IO[str]:
    """Hold a folder for as long as the returned file is open or the process lives.

    Raises:
        PlatformError: another process holds it, the text names it; or it can be no folder of ours.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = identity.take(folder / LOCK)
    except OSError as error:
        raise PlatformError(f"{folder} cannot be a data directory: {error.strerror}") from error
    if handle is None:
        found = identity.holder(folder / LOCK)
        whom = found.pid if found is not None else "another"
        raise PlatformError(f"the {what} at {folder} is in use by process {whom}; stop it first")
    identity.sign(handle, identity.process_of(os.getpid()))
    return handle


def free_port() -> int:
    """Return a loopback port nobody listens on now; another process may still take it.

    It lies below the range systems draw client ports from: there, a client that keeps calling
    a server that is down may be given the server's own port, and so keep it from returning.
    """
    for _ in range(1000):
        port = PORT_LOW + secrets.randbelow(PORT_COUNT)
        if port_is_free(port):
            return port
    raise PlatformError("no free port on the loopback interface")


def port_is_free(port: int) -> bool:
    """Say whether a loopback port can be listened on now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def require_port(port: int, what: str, variable: str) -> None:
    """Check that a port is free.

    Raises:
        PortTaken: it is not; the text names the holder if known and the variable to change.
    """
    if not port_is_free(port):
        raise PortTaken(
            f"port {port} for {what} is taken{_by_whom(port)}; set {variable} to another one, "
            "or start it with tokenline up --free-ports"
        )


def _by_whom(port: int) -> str:
    import psutil  # noqa: PLC0415  only the embedded extra brings it

    try:
        for connection in psutil.net_connections("tcp"):
            listening = connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            if listening and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:
        return ""
    return ""


def wait_for(ready: Callable[[], bool], *, timeout_s: float, every_s: float = 0.05) -> bool:
    """Ask `ready` until it says yes; return False after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True


def remove_folder(folder: Path, *, within_s: float = 5.0) -> bool:
    """Remove the folder of processes that were ended; return whether it is gone.

    One that is just dying may write a file while the folder is emptied, and it would stay.
    """

    def gone() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    return wait_for(gone, timeout_s=within_s)


def last_lines(log: Path, count: int = 5) -> str:
    """Return the end of a log for an error's text; empty if there is none."""
    try:
        with log.open("rb") as source:
            source.seek(max(0, log.stat().st_size - 8192))
            lines = source.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-count:])


def together(jobs: Sequence[Callable[[], None]]) -> None:
    """Run jobs at the same time, let all end, then raise the first error."""
    if not jobs:
        return
    with ThreadPoolExecutor(len(jobs)) as pool:
        futures = [pool.submit(job) for job in jobs]
    for future in futures:
        future.result()
