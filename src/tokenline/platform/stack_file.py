"""Let other commands find a running stack: one small file in its data directory.

A pid alone proves nothing, systems use it again: every pid is stored with its start time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tokenline.errors import NotRunning, PlatformError
from tokenline.platform import processes
from tokenline.platform.access import Role
from tokenline.platform.kafka import broker_answers
from tokenline.platform.secrets import read_secrets, write_private
from tokenline.platform.worker_process import ask_health, in_words
from tokenline.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    import psutil

FILE = "stack.json"
START_SLACK_S = 2.0
SECRETS = frozenset(("kafka_password", "schema_registry_password", "clickhouse_password"))
State = Literal["ready", "not ready", "down"]


@dataclass(frozen=True, slots=True)
class Seen:
    """A process as the supervisor last saw it."""

    name: str
    pid: int
    started: float
    port: int = 0

    def alive(self) -> psutil.Process | None:
        """Return the process if it is still the same one."""
        import psutil  # noqa: PLC0415  only the embedded extra brings it

        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < START_SLACK_S
            ended = process.status() == psutil.STATUS_ZOMBIE
        except psutil.Error:
            return None
        return process if same and not ended else None


@dataclass(frozen=True, slots=True)
class ComponentStatus:
    """What one component does now."""

    component: str
    state: State
    pid: int | None
    port: int
    detail: str


@dataclass(frozen=True, slots=True)
class StackFile:
    """What the supervisor writes down."""

    supervisor: Seen
    components: tuple[Seen, ...]
    settings: dict[str, str]
    started: bool = True
    """Whether everything was ready once; before that the settings are not final."""

    def write(self, data_dir: Path) -> None:
        """Replace the file in one step."""
        value = {
            "supervisor": _fields(self.supervisor),
            "components": [_fields(seen) for seen in self.components],
            "settings": self.settings,
            "started": self.started,
        }
        write_private(data_dir / FILE, json.dumps(value, indent=1))

    @classmethod
    def read(cls, data_dir: Path) -> StackFile:
        """Read the file of a stack that runs.

        Raises:
            NotRunning: there is none, or its supervisor is gone.
        """
        path = data_dir / FILE
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            file = cls(
                supervisor=Seen(**value["supervisor"]),
                components=tuple(Seen(**seen) for seen in value["components"]),
                settings=value["settings"],
                started=value["started"],
            )
        except (FileNotFoundError, NotADirectoryError):
            raise NotRunning(f"no stack runs in {data_dir}; {_start(data_dir)}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise PlatformError(f"{path} is not readable: {error!r}; remove it") from error
        if file.supervisor.alive() is None:
            raise NotRunning(f"the stack in {data_dir} has ended; {_start(data_dir)}")
        return file


def _start(data_dir: Path) -> str:
    return f"start it: tokenline up --data {data_dir}"


def see(name: str, pid: int | None, port: int = 0) -> Seen:
    """Note a process that runs now; one without a pid is not started yet."""
    import psutil  # noqa: PLC0415  only the embedded extra brings it

    if pid is None:
        return Seen(name, 0, 0.0, port)
    try:
        return Seen(name, pid, psutil.Process(pid).create_time(), port)
    except psutil.NoSuchProcess:
        return Seen(name, pid, 0.0, port)


def storable(settings: Settings) -> dict[str, str]:
    """Return the settings as variables, without secrets."""
    return settings.model_copy(update=dict.fromkeys(SECRETS, "")).to_env()


def find_stack(data_dir: Path, *, warehouse: str = Role.READER) -> Settings:
    """Return settings that lead to the stack running in `data_dir`.

    `warehouse` is the role that they have there: reader, auditor or writer.

    Raises:
        NotRunning: there is none, or it is still starting.
        PlatformError: the passwords cannot be read.
    """
    file = StackFile.read(data_dir)
    if not file.started:
        raise NotRunning(f"the stack in {data_dir} is still starting; see tokenline status")
    passwords = read_secrets(data_dir).get("warehouse", {})
    rights = {"clickhouse_username": warehouse, "clickhouse_password": passwords.get(warehouse, "")}
    return Settings.from_env(file.settings).model_copy(update=rights)


def down(data_dir: Path, timeout_s: float = 30) -> None:
    """Ask the supervisor to stop the stack and wait until it has.

    Raises:
        NotRunning: there is none.
        PlatformError: it did not end in time.
    """
    import psutil  # noqa: PLC0415  only the embedded extra brings it

    supervisor = StackFile.read(data_dir).supervisor
    process = supervisor.alive()
    if process is None:
        return
    try:
        process.terminate()
    except psutil.NoSuchProcess:
        return
    if not processes.wait_for(lambda: supervisor.alive() is None, timeout_s=timeout_s):
        raise PlatformError(f"the stack (pid {supervisor.pid}) did not end in {timeout_s:.0f} s")


def status(data_dir: Path) -> list[ComponentStatus]:
    """Look at each component of the stack in `data_dir`, the supervisor first.

    Raises:
        NotRunning: there is none.
    """
    file = StackFile.read(data_dir)
    own = ComponentStatus("supervisor", "ready", file.supervisor.pid, 0, str(data_dir))
    return [own, *map(_status, file.components)]


def _status(seen: Seen) -> ComponentStatus:
    if not seen.pid:
        return ComponentStatus(seen.name, "not ready", None, seen.port, "not started yet")
    if seen.alive() is None:
        return ComponentStatus(seen.name, "down", None, seen.port, "ended; see its log")
    ready, detail = _look(seen)
    state: State = "ready" if ready else "not ready"
    return ComponentStatus(seen.name, state, seen.pid, seen.port, detail)


def _look(seen: Seen) -> tuple[bool, str]:
    if seen.name == "kafka":
        return broker_answers(seen.port), f"{processes.LOOPBACK}:{seen.port}"
    if seen.name == "warehouse":
        url = f"http://{processes.LOOPBACK}:{seen.port}"
        return ask_health(seen.port, "/ping")[0] == 200, url
    code, text = ask_health(seen.port, "/readyz")
    health, words = ask_health(seen.port, "/healthz")
    return code == 200, in_words(words) if health else in_words(text)


def _fields(seen: Seen) -> dict[str, str | int | float]:
    return {"name": seen.name, "pid": seen.pid, "started": seen.started, "port": seen.port}
