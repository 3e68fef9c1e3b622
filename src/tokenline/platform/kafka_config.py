"""Say how the embedded broker is set up: its properties file, what stays between its starts, who logs in."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import uuid
from typing import TYPE_CHECKING

from tokenline.errors import PlatformError
from tokenline.platform import processes
from tokenline.platform.kafka_link import MECHANISM, KafkaLink
from tokenline.platform.secrets import read_secrets, write_private

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tokenline.settings import Settings

SERVER = "kafka"  # its part of the file of passwords
ADMIN = "admin"
CONTROLLER = "controller"
# broker.session.timeout: after kill -9 the broker waits this long for its former self to
# expire before it may register again, so it is the floor of a restart.
PROPERTIES = """process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=CLIENTS://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
inter.broker.listener.name=CLIENTS
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:SASL_PLAINTEXT,CLIENTS:SASL_PLAINTEXT
sasl.enabled.mechanisms={mechanism}
sasl.mechanism.inter.broker.protocol={mechanism}
sasl.mechanism.controller.protocol=PLAIN
listener.name.clients.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule \
  required username="{admin}" password="{admin_password}";
listener.name.controller.sasl.enabled.mechanisms=PLAIN
listener.name.controller.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \
  required username="{controller}" password="{controller_password}" user_{controller}="{controller_password}";
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:{admin};User:{controller}
allow.everyone.if.no.acl.found=false
log.dirs={log_dir}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=400
log.cleaner.dedupe.buffer.size=16777216
log.index.size.max.bytes=2097152
num.network.threads=2
num.io.threads=4
"""


class Identity:
    """Keep what must not change between starts of one data directory.

    The controller's password is among it: nobody but the process itself and its supervisor logs in there.
    """

    def __init__(
        self, cluster_id: str, port: int, controller_port: int, controller_password: str
    ) -> None:
        self.cluster_id = cluster_id
        self.port = port
        self.controller_port = controller_port
        self.controller_password = controller_password

    @classmethod
    def load(cls, data_dir: Path, asked_port: int) -> Identity:
        """Read the identity, or draw one; a controller port that is taken is drawn anew."""
        path = data_dir / "kafka.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        controller_port = known.get("controller_port", 0)
        if not controller_port or not processes.port_is_free(controller_port):
            controller_port = processes.free_port()
        identity = cls(
            cluster_id=known.get("cluster_id") or random_id(),
            port=asked_port or known.get("port") or processes.free_port(),
            controller_port=controller_port,
            controller_password=known.get("controller_password") or secrets.token_urlsafe(),
        )
        write_private(path, json.dumps(vars(identity), indent=1))
        return identity

    def write(self, data_dir: Path, admin_password: str) -> Path:
        """Write the broker's properties file, which holds passwords, and return its path."""
        path = data_dir / "server.properties"
        values = vars(self) | {
            "log_dir": _escape(str(data_dir / "log")),
            "mechanism": MECHANISM,
            "admin": ADMIN,
            "admin_password": admin_password,
            "controller": CONTROLLER,
        }
        write_private(path, PROPERTIES.format(**values))
        return path

    def set_users(self, passwords: Mapping[str, str]) -> bool:
        """Tell the controller who may log in with what; False when it does not answer yet."""
        try:
            with KafkaLink(self.controller_port) as link:
                link.log_in_plain(CONTROLLER, self.controller_password)
                link.set_users(passwords)
        except OSError:
            return False
        return True


def as_role(settings: Settings, role: str) -> Settings:
    """Return settings that log in as a role, where they lead to the embedded broker of their `data_dir`.

    Others are returned as they are: who runs a line says for each process as what it logs in.

    Raises:
        PlatformError: the file of the passwords cannot be read.
    """
    passwords = read_secrets(settings.data_dir).get(SERVER, {})
    if settings.kafka_username not in passwords:
        return settings
    return settings.model_copy(update=access_fields(role, passwords))


def access_fields(role: str, passwords: Mapping[str, str]) -> dict[str, str | None]:
    """Return the fields of `Settings` by which a role logs in to an embedded broker.

    Raises:
        PlatformError: it has no password.
    """
    if role not in passwords:
        raise PlatformError(f"the embedded broker has no password for the role {role!r}")
    return {
        "kafka_security": "SASL_PLAINTEXT",
        "kafka_sasl_mechanism": MECHANISM,
        "kafka_username": role,
        "kafka_password": passwords[role],
        "kafka_password_file": None,
    }


def fingerprint(passwords: Mapping[str, str]) -> str:
    """Return what changes with any password and tells none: they are random and long."""
    return hashlib.sha256(json.dumps(passwords, sort_keys=True).encode()).hexdigest()


def random_id() -> str:
    """Return a cluster id as Kafka draws them: 16 random bytes in base64, no leading dash.

    A dash in front would be read as an option by Kafka's own tools.
    """
    while True:
        drawn = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not drawn.startswith("-"):
            return drawn


def _escape(path: str) -> str:
    """Write a path as Java's properties files want it: other letters than Latin as codes.

    Raises:
        PlatformError: it holds a comma, which Kafka would take for the end of a path.
    """
    if "," in path:
        raise PlatformError(f"Kafka cannot keep data under a name with a comma: {path}")
    units = path.replace("\\", "\\\\").encode("utf-16-be")
    codes = [int.from_bytes(units[at : at + 2], "big") for at in range(0, len(units), 2)]
    return "".join(chr(code) if code < 128 else f"\\u{code:04x}" for code in codes)
