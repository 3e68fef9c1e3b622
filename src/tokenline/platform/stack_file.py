"""Let other commands find a running stack: one small file in its data directory.

Whether a stack runs says the lock of its directory (`platform.identity`), never a pid or a clock alone.
"""

from __future__ import annotations

import json
import os
import signal
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from tokenline.errors import NotRunning, PlatformError
from tokenline.platform import identity, processes
from tokenline.platform.access import Role
from tokenline.platform.identity import Process
from tokenline.platform.kafka_config import ADMIN, SERVER, access_fields
from tokenline.platform.kafka_link import broker_answers
from tokenline.platform.secrets import read_secrets, write_private
from tokenline.platform.worker_process import ask_health, in_words
from tokenline.settings import Settings, variable

if TYPE_CHECKING:
    from pathlib import Path

FILE = "stack.json"
SECRETS = frozenset(
    (
        *("kafka_security", "kafka_sasl_mechanism", "kafka_username", "kafka_password"),
        *("kafka_password_file", "schema_registry_password", "clickhouse_password"),
    )
)
# A gateway needs no more to reach the line.
GATEWAY_SETTINGS = (
    *(
        "kafka_bootstrap",
        "kafka_security",
        "kafka_sasl_mechanism",
        "kafka_username",
        "kafka_password",
    ),
    *("topic_prefix", "partitions"),
)
State = Literal["ready", "not ready", "down"]


@dataclass(frozen=True, slots=True)
class Seen:
    """A process as the supervisor last saw it; `note` says how often it died, empty if never."""

    name: str
    pid: int
    tick: str = ""
    port: int = 0
    note: str = ""

    @property
    def alive(self) -> bool:
        """Whether the process is still the same one and lives."""
        return Process(self.pid, self.tick).alive


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
    """What the supervisor writes down. Whether it lives says the lock of its data directory."""

    components: tuple[Seen, ...]
    settings: dict[str, str]
    started: bool = True
    """Whether everything was ready once; before that the settings are not final."""

    def write(self, data_dir: Path) -> None:
        """Replace the file in one step.

        Raises:
            PlatformError: there is no room; the file before stays.
        """
        write_private(data_dir / FILE, json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, data_dir: Path) -> StackFile:
        """Read the file of a stack that runs.

        Raises:
            NotRunning: there is none, or its supervisor is gone.
        """
        path = data_dir / FILE
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            seen = tuple(Seen(**one) for one in value["components"])
            file = cls(components=seen, settings=value["settings"], started=value["started"])
        except (FileNotFoundError, NotADirectoryError):
            raise NotRunning(f"no stack runs in {data_dir}; {_start(data_dir)}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise PlatformError(f"{path} is not readable: {error!r}; remove it") from error
        if supervisor(data_dir) is None:
            raise NotRunning(f"the stack in {data_dir} has ended; {_start(data_dir)}")
        return file


def supervisor(data_dir: Path) -> Process | None:
    """Return who supervises a data directory; None if nobody does."""
    return identity.holder(data_dir / processes.LOCK)


def _start(data_dir: Path) -> str:
    return f"start it: tokenline up --data {data_dir}"


def see(name: str, pid: int | None, port: int = 0, note: str = "") -> Seen:
    """Note a process that runs now; one without a pid is not started yet."""
    tick = "" if pid is None else identity.process_of(pid).tick
    return Seen(name, pid or 0, tick, port, note)


def storable(settings: Settings) -> dict[str, str]:
    """Return the settings as variables, without secrets and without who logs in."""
    kept = {name: Settings.model_fields[name].default for name in SECRETS}
    return settings.model_copy(update=kept).to_env()


def find_stack(data_dir: Path, role: str = "operator", *, warehouse: str = Role.READER) -> Settings:
    """Return settings that lead to the stack running in `data_dir`, and log in there as a role.

    `warehouse` is the role that they have there: reader, auditor or writer.

    `warehouse` is the role that they have there: reader, auditor or writer.

    Raises:
        NotRunning: there is none, or it is still starting.
        PlatformError: the passwords cannot be read.
    """
    file = StackFile.read(data_dir)
    if not file.started:
        raise NotRunning(f"the stack in {data_dir} is still starting; see tokenline status")
    passwords = read_secrets(data_dir)
    fields = access_fields(role, passwords.get(SERVER, {})) | {
        "clickhouse_username": warehouse,
        "clickhouse_password": passwords.get("warehouse", {}).get(warehouse, ""),
    }
    return Settings.from_env(file.settings).model_copy(update=fields)


def gateway_environment(data_dir: Path) -> dict[str, str]:
    """Return the variables with which a gateway on this machine reaches the stack; raises as `find_stack`.

    What a gateway chooses itself (its id, its own data directory) is not among them.
    """
    settings = find_stack(data_dir, "gateway")
    return {variable(name): str(getattr(settings, name)) for name in GATEWAY_SETTINGS}


def logs_of(data_dir: Path) -> list[Path]:
    """Return the log of each program that a stack may have started here; a lock lies beside each."""
    folders = (data_dir / "kafka", data_dir / "warehouse", data_dir / "logs")
    return [
        lock.with_suffix(".log") for folder in folders for lock in sorted(folder.glob("*.lock"))
    ]


def down(data_dir: Path, timeout_s: float = 30) -> None:
    """Ask the supervisor to stop the stack and wait until it has; end what a dead one left behind.

    Raises:
        NotRunning: there is none, and nothing of one.
        PlatformError: it did not end in time, or runs where this command cannot reach it.
    """
    found = supervisor(data_dir)
    if found is None:
        _clear_away(data_dir)
        return
    if not found.alive:
        raise PlatformError(
            f"the stack in {data_dir} runs as process {found.pid} of another container or machine; "
            "stop it there"
        )
    os.kill(found.pid, signal.SIGTERM)
    if not processes.wait_for(lambda: supervisor(data_dir) is None, timeout_s=timeout_s):
        raise PlatformError(f"the stack (pid {found.pid}) did not end in {timeout_s:.0f} s")


def _clear_away(data_dir: Path) -> None:
    """End what a dead supervisor left.

    Raises:
        NotRunning: it left nothing.
    """
    logs = logs_of(data_dir)
    if logs or (data_dir / FILE).exists():
        with processes.hold(data_dir, "stack"):
            ended = processes.end_orphans(logs)
            (data_dir / FILE).unlink(missing_ok=True)
        if ended:
            return
    raise NotRunning(f"no stack runs in {data_dir}; {_start(data_dir)}")


def status(data_dir: Path) -> list[ComponentStatus]:
    """Look at each component of the stack in `data_dir`, the supervisor first.

    Raises:
        NotRunning: there is none.
    """
    file = StackFile.read(data_dir)
    found = supervisor(data_dir)
    own = ComponentStatus("supervisor", "ready", found.pid if found else None, 0, str(data_dir))
    return [own, *(_status(data_dir, seen) for seen in file.components)]


def _status(data_dir: Path, seen: Seen) -> ComponentStatus:
    if not seen.pid:
        return ComponentStatus(
            seen.name, "not ready", None, seen.port, seen.note or "not started yet"
        )
    if not seen.alive:
        detail = seen.note or "ended; see its log"
        return ComponentStatus(seen.name, "down", None, seen.port, detail)
    ready, detail = _look(data_dir, seen)
    state: State = "ready" if ready else "not ready"
    return ComponentStatus(seen.name, state, seen.pid, seen.port, _joined(detail, seen.note))


def _joined(*parts: str) -> str:
    return "; ".join(filter(None, parts))


def _look(data_dir: Path, seen: Seen) -> tuple[bool, str]:
    if seen.name == "kafka":
        password = read_secrets(data_dir).get(SERVER, {}).get(ADMIN, "")
        answers = broker_answers(seen.port, ADMIN, password)
        return answers, f"{processes.LOOPBACK}:{seen.port}"
    if seen.name == "warehouse":
        url = f"http://{processes.LOOPBACK}:{seen.port}"
        return ask_health(seen.port, "/ping")[0] == 200, url
    code, text = ask_health(seen.port, "/readyz")
    health, words = ask_health(seen.port, "/healthz")
    return code == 200, in_words(words) if health else in_words(text)
