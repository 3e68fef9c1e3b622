"""Run a real Apache Kafka 4.1 (KRaft, broker and controller in one JVM) on loopback.

One broker, one copy of the data: what is acknowledged survives the end of the process (also
kill -9) and a restart, not the loss of the disk. Clients log in, each role with a password of its own
(see `platform.secrets`), and have the rights of `wire.rights`; only `ADMIN` may do everything.
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tokenline.errors import PlatformError, PortTaken
from tokenline.platform import jars, processes
from tokenline.platform.environment import server_environment
from tokenline.platform.kafka_config import ADMIN, SERVER, Identity, access_fields, fingerprint
from tokenline.platform.kafka_link import broker_answers
from tokenline.platform.secrets import make_secrets, write_private
from tokenline.wire.rights import ROLES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

AOT_SINCE_JAVA = 25  # JEP 514
VARIABLE = "TOKENLINE_KAFKA_BOOTSTRAP"
USERS_FILE = "users.sha256"
# C1 only: a broker spends its time in I/O, and the C2 compiler takes a core for minutes.
JVM = (
    "-Xms96m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:+ExitOnOutOfMemoryError",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
)


class EmbeddedKafka:
    """Own one broker process over one data directory.

    Arguments:
        data_dir: where everything of the broker lives; made if missing.
        port: the loopback port of clients; 0 picks a free one and remembers it.
        secrets_dir: where the file of the passwords is; `data_dir` by default.
        cache: where jars are kept; the user's cache by default.
        heap_mb: the most the JVM's heap may take.
    """

    def __init__(
        self,
        data_dir: Path,
        port: int = 0,
        *,
        secrets_dir: Path | None = None,
        cache: Path | None = None,
        heap_mb: int = 512,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.log = self.data_dir / "broker.log"
        self._secrets_dir = secrets_dir or self.data_dir
        self._passwords: dict[str, str] = {}
        self._cache = cache or jars.cache_dir()
        self._heap_mb = heap_mb
        self._asked_port = port
        self._identity: Identity | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._held: IO[str] | None = None

    @property
    def port(self) -> int:
        """The port of clients; known from the first start on."""
        if self._identity is None:
            raise PlatformError("the broker was never started")
        return self._identity.port

    @property
    def bootstrap(self) -> str:
        """What a client's `bootstrap_servers` should be."""
        return f"{processes.LOOPBACK}:{self.port}"

    @property
    def prepared(self) -> bool:
        """Whether jars and start-up cache are there; if not, the first start takes about 30 s."""
        return jars.are_cached(self._cache) and _aot_path(self._cache) is not None

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """The JVM, once started; it may have ended since."""
        return self._process

    @property
    def pid(self) -> int | None:
        """The JVM's pid while it runs."""
        return self._process.pid if self.running and self._process else None

    @property
    def running(self) -> bool:
        """Whether the JVM lives; not whether it answers."""
        return self._process is not None and self._process.poll() is None

    def start(self, timeout_s: float = 60) -> None:
        """Start the broker and return when it answers; does nothing if it runs.

        Raises:
            PortTaken: another process holds the port.
            NoJava: no Java runtime could be found.
            PlatformError: another process holds the data, or the broker ended or did not answer in
            time; the text ends with its log.
        """
        if self.running:
            return
        classpath = jars.kafka_jars(self._cache)
        self._let_go()
        self._held = processes.hold(self.data_dir, "broker")
        try:
            self._launch(classpath)
            self._await_answer(timeout_s)
        except BaseException:
            self.kill()
            raise

    def stop(self, timeout_s: float = 10) -> None:
        """End the broker cleanly, with SIGKILL after `timeout_s`; does nothing if it is down."""
        if self._process is not None:
            processes.end(self._process, timeout_s)
        self._let_go()

    def kill(self) -> None:
        """End the broker with kill -9, as a crash would; `start` brings it back."""
        if self._process is not None:
            processes.kill(self._process)
        self._let_go()

    def answers(self) -> bool:
        """Say whether a client would find the broker in its metadata now."""
        return broker_answers(self.port, ADMIN, self._passwords[ADMIN])

    def access(self, role: str = ADMIN) -> dict[str, Any]:
        """Return the fields of `Settings` by which a role reaches this broker."""
        return {"kafka_bootstrap": self.bootstrap, **access_fields(role, self._passwords)}

    def _launch(self, classpath: Sequence[Path]) -> None:
        self._identity = Identity.load(self.data_dir, self._asked_port)
        self.data_dir.chmod(0o700)
        self._passwords = make_secrets(self._secrets_dir, SERVER, (ADMIN, *ROLES))
        processes.require_port(self.port, "Kafka", VARIABLE)
        command = _java(classpath, self._heap_mb, warm_cache(self._cache, classpath))
        properties = self._identity.write(self.data_dir, self._passwords[ADMIN])
        _format(command, properties, self._identity.cluster_id, self.data_dir)
        self._process = processes.spawn(
            [*command, "kafka.Kafka", str(properties)], log=self.log, env=_java_env()
        )

    def _let_go(self) -> None:
        if self._held is not None:
            self._held.close()
        self._held = None

    def _await_answer(self, timeout_s: float) -> None:
        self._set_users(timeout_s)
        if not processes.wait_for(self._settled, timeout_s=timeout_s):
            raise PlatformError(f"Kafka did not answer within {timeout_s:.0f} s: see {self.log}")
        if not self.running:
            raise self._why_it_ended()

    def _settled(self) -> bool:
        return not self.running or self.answers()

    def _set_users(self, timeout_s: float) -> None:
        """Tell Kafka the passwords where it does not know them yet: new ones, or a role that is new."""
        known, wanted = self.data_dir / USERS_FILE, fingerprint(self._passwords)
        if known.exists() and known.read_text(encoding="utf-8") == wanted:
            return
        assert self._identity is not None  # noqa: S101  it was launched
        set_ = partial(self._identity.set_users, self._passwords)
        if (
            processes.wait_for(lambda: not self.running or set_(), timeout_s=timeout_s)
            and self.running
        ):
            write_private(known, wanted)

    def _why_it_ended(self) -> PlatformError:
        tail = processes.last_lines(self.log, 60)
        if "Address already in use" in tail or "BindException" in tail:
            return PortTaken(f"port {self.port} for Kafka was taken; set {VARIABLE} to another one")
        return PlatformError(f"Kafka ended while starting:\n{processes.last_lines(self.log)}")


def warm_cache(cache: Path, classpath: Sequence[Path]) -> Path | None:
    """Return Java's start-up cache of the broker, made once a user (about 10 s, 65 MB).

    With it a broker starts in 1.3 s instead of 3.5 s. None where Java is too old or the
    training failed: then starts are slower, nothing else.
    """
    if int(jars.java_version().split(".")[0]) < AOT_SINCE_JAVA:
        return None
    if _aot_path(cache) is None:
        with jars.locked(cache):
            if _aot_path(cache) is None:
                _train(_aot_name(cache), classpath)
    path = _aot_path(cache)
    return path if path is not None and path.stat().st_size else None


def _aot_name(cache: Path) -> Path:
    return cache / f"kafka-4.1.0-sasl-java-{jars.java_version()}.aot"


def _aot_path(cache: Path) -> Path | None:
    """Return the start-up cache if it was made; it is empty if making it failed."""
    path = _aot_name(cache)
    return path if path.exists() else None


def _train(path: Path, classpath: Sequence[Path]) -> None:
    """Run a throw-away broker that writes the cache when it ends."""
    draft = path.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="tokenline-train-") as name:
        root = Path(name)
        identity, passwords = Identity.load(root, 0), {ADMIN: secrets.token_urlsafe()}
        properties = identity.write(root, passwords[ADMIN])
        java = _java(classpath, 512, None)
        _format(java, properties, identity.cluster_id, root)
        recorded = [*java[:1], f"-XX:AOTCacheOutput={draft}", *java[1:]]
        process = processes.spawn(
            [*recorded, "kafka.Kafka", str(properties)], log=root / "broker.log", env=_java_env()
        )
        steps = (
            partial(identity.set_users, passwords),
            partial(broker_answers, identity.port, ADMIN, passwords[ADMIN]),
        )
        for done in steps:
            _wait_for(process, done)
        processes.end(process, 60)
    if not draft.exists():
        draft.touch()
    draft.replace(path)


def _wait_for(process: subprocess.Popen[bytes], done: Callable[[], bool]) -> None:
    processes.wait_for(lambda: process.poll() is not None or done(), timeout_s=60)


def _java(classpath: Sequence[Path], heap_mb: int, aot: Path | None) -> list[str]:
    warm = [f"-XX:AOTCache={aot}", "-Xlog:disable", "-Xlog:all=error:stderr"] if aot else []
    paths = ":".join(map(str, classpath))
    return [str(jars.java()), f"-Xmx{heap_mb}m", *JVM, *warm, "-cp", paths]


def _format(command: Sequence[str], properties: Path, cluster_id: str, data_dir: Path) -> None:
    """Write the storage's first files, once; a format cut short is begun anew."""
    log_dir, done = data_dir / "log", data_dir / "formatted"
    if done.exists():
        return
    shutil.rmtree(log_dir, ignore_errors=True)
    tool = ["kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(properties)]
    result = subprocess.run(
        [*command, *tool], env=_java_env(), capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise PlatformError(f"cannot format Kafka's storage: {result.stderr.strip()[-500:]}")
    done.touch()


def _java_env() -> dict[str, str]:
    """Return an environment in which Java reads file names as UTF-8 whatever the user's locale."""
    return server_environment() | {"LC_ALL": "C.UTF-8"}
