"""Hold every setting as one frozen object, parsed once from the environment.

A bad value refuses the start and names its variable. Nothing reads `os.environ` after this.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tokenline.errors import SettingsError
from tokenline.masking import MASK, without_secrets

PREFIX = "TOKENLINE_"
# Names other tools already use win over our prefix.
FOREIGN = {"schema_registry_url": "SCHEMA_REGISTRY_URL"}
# What Kubernetes (service links) and Docker (links) put into every container for a Service whose
# name begins with ours, such as TOKENLINE_PORT=tcp://10.0.0.1:80.
_INJECTED = re.compile(
    r"(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR|START|END))?)"
)
_INJECTED_ADDRESS = re.compile(r"(?:tcp|udp|sctp)://\S+")
_INJECTED_NAME = re.compile(r"/[\w.-]+/[\w.-]+")  # NAME=/web/db, which Docker adds


class Settings(BaseModel):
    """State how this process reaches the line and how it behaves.

    Durations end in `_ms` or `_s`, sizes in `_bytes`; each field is `TOKENLINE_<NAME>` in the environment.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Kafka
    kafka_bootstrap: str = Field(
        "127.0.0.1:19092", description="Kafka servers, host:port, comma separated"
    )
    kafka_security: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="Kafka security protocol"
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="SASL mechanism, when the protocol is SASL_*"
    )
    kafka_username: str = Field("", description="SASL user, when the protocol is SASL_*")
    kafka_password: str = Field("", repr=False, description="SASL password")
    kafka_password_file: Path | None = Field(
        None, description="file that holds the SASL password, read at each connection"
    )
    kafka_ca_file: Path | None = Field(None, description="CA bundle for TLS to Kafka")
    kafka_cert_file: Path | None = Field(None, description="client certificate for TLS to Kafka")
    kafka_key_file: Path | None = Field(None, description="client key for TLS to Kafka")
    topic_prefix: str = Field("tokenline.", description="prefix of every topic")
    partitions: int = Field(
        2,
        ge=1,
        le=4096,
        # Each costs its worker 2 to 3 ms of work a fetch, which is latency; 2 suit two cores with the broker on them.
        description="partitions of each keyed topic, the most workers there can be; fixed for a line's life",
    )
    replication_factor: int = Field(
        1, ge=1, le=9, description="replicas of each topic; 3 in production"
    )
    session_timeout_ms: int = Field(
        8000, ge=1000, description="a silent worker loses its partitions after this"
    )

    # Schemas
    schema_registry_url: str = Field(
        "", description="Confluent-compatible registry; empty means the file registry"
    )
    schema_registry_username: str = Field("", description="registry user")
    schema_registry_password: str = Field("", repr=False, description="registry password")

    # Charging
    dedup_horizon_s: int = Field(
        3600, ge=60, le=86_400, description="an event so old when appended is late"
    )
    future_skew_s: int = Field(300, ge=0, description="an event further in the future is refused")
    max_age_days: int = Field(90, ge=1, le=3000, description="an event older than this is refused")
    max_tokens_per_event: int = Field(
        1_000_000_000,
        ge=1,
        le=9_000_000_000,  # ten kinds of so many at 10^8 µtok each still fit an int64 (`rating.rate`)
        description="a larger count of a kind is refused",
    )
    max_charge_utok_per_event: int = Field(
        10**15,
        ge=1,
        le=10**18,  # so that what is unpaid, at most 10^18 above all buckets, stays an int64
        description="an event that costs more than so many utok is refused",
    )
    bad_records_per_minute: int = Field(
        1000,
        ge=1,
        le=100_000,
        description="so many bad records of a sender and partition have a dead letter each; others share",
    )
    # A step is one batch of the journal; see `streams.intake`.
    max_chunk_records: int = Field(10_000, ge=1, le=15_000, description="records folded at once")
    heartbeat_ms: int = Field(
        1000, ge=100, description="how often charging tells guards that it is caught up"
    )
    idle_flush_ms: int = Field(
        2000, ge=50, le=60_000, description="a partition quiet for so long tells the open minute"
    )

    # Gateways
    gateway_id: str = Field(
        "", description="name of this gateway instance, for `tokenline.Gateway`"
    )
    gateway_source: str = Field(
        "gateway", description="logical producer that all instances of one gateway share"
    )
    guard_stale_ms: int = Field(
        20_000, ge=1000, description="charging silent for so long counts as out of reach"
    )
    admit_wait_ms: int = Field(
        5000, ge=0, description="a call waits so long for units that others hold"
    )
    lease_idle_ms: int = Field(
        5000, ge=100, description="a lease that no call uses for so long is given back"
    )

    # Webhooks
    webhooks_file: Path | None = Field(
        None, description="endpoints that are told of thresholds, cuts and their ends (TOML)"
    )
    webhook_timeout_ms: int = Field(
        15_000, ge=100, le=300_000, description="a receiver that does not answer for so long failed"
    )
    webhook_retry_first_ms: int = Field(
        2000, ge=10, description="wait after the first failure; it doubles with each"
    )
    webhook_retry_max_ms: int = Field(
        1_800_000, ge=10, description="longest wait between two attempts"
    )
    webhook_max_age_s: int = Field(
        86_400, ge=1, le=604_800, description="what could not be told for so long is a dead letter"
    )

    # Landing and warehouse
    clickhouse_url: str = Field("http://127.0.0.1:18123", description="ClickHouse HTTP(S) address")
    clickhouse_database: str = Field(
        "tokenline", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="database of all tables"
    )
    clickhouse_username: str = Field(
        "default",
        description="ClickHouse user; a command needs the rights of its role (migrate plan --roles)",
    )
    clickhouse_password: str = Field("", repr=False, description="ClickHouse password")
    clickhouse_ca_file: Path | None = Field(None, description="CA bundle for TLS to ClickHouse")
    clickhouse_cluster: str = Field(
        "", description="cluster for replicated tables; empty means a single node"
    )
    landing_max_rows: int = Field(100_000, ge=1, description="rows of one insert")
    landing_max_wait_ms: int = Field(
        1000, ge=10, description="a smaller batch is inserted after this long"
    )

    # Workers
    health_host: str = Field("127.0.0.1", description="address of /healthz, /readyz, /metrics")
    charging_health_port: int = Field(
        19101, ge=0, le=65535, description="charging's health port; 0 picks a free one"
    )
    landing_health_port: int = Field(
        19102, ge=0, le=65535, description="landing's health port; 0 picks a free one"
    )
    notify_health_port: int = Field(
        19103, ge=0, le=65535, description="the notify worker's health port; 0 picks a free one"
    )
    stall_s: int = Field(30, ge=1, description="lag without progress so long is unhealthy")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="least level logged"
    )
    data_dir: Path = Field(
        Path(".tokenline"),
        description="where the embedded stack keeps its data, and a gateway its outbox and slices",
    )

    @model_validator(mode="after")
    def _check_kafka(self) -> Self:
        """Refuse credentials that lack a part, or that nothing would use."""
        given = {
            "kafka_username": self.kafka_username,
            "kafka_password": self.kafka_password,
            "kafka_password_file": self.kafka_password_file,
        }
        if not self.kafka_security.startswith("SASL"):
            if unused := next((name for name, value in given.items() if value), None):
                raise ValueError(
                    f"{variable(unused)} is given, and {variable('kafka_security')}="
                    f"{self.kafka_security} uses none; say SASL_SSL, or SASL_PLAINTEXT on loopback"
                )
        elif not self.kafka_username:
            raise ValueError(
                f"{variable('kafka_username')} is missing: {variable('kafka_security')}="
                f"{self.kafka_security} needs a user"
            )
        elif bool(self.kafka_password) == (self.kafka_password_file is not None):
            raise ValueError(
                f"give {variable('kafka_password')} or {variable('kafka_password_file')}, one of them"
            )
        return self

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Parse the environment once.

        Raises:
            SettingsError: a value is wrong or a `TOKENLINE_` variable is unknown; the text names it.
        """
        environ = os.environ if environ is None else environ
        injected = injected_variables(environ)
        given = {
            name: environ[var]
            for name in cls.model_fields
            if environ.get(var := variable(name)) and var not in injected
        }
        unknown = sorted(
            var
            for var in environ
            if var.startswith(PREFIX)
            and var.removeprefix(PREFIX).lower() not in cls.model_fields
            and var not in injected
        )
        if unknown:
            raise SettingsError(
                f"{unknown[0]} is not a setting of tokenline; see `tokenline settings`"
            )
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            if not first["loc"]:  # It is about several, and names them.
                raise SettingsError(first["msg"].removeprefix("Value error, ")) from error
            name = str(first["loc"][0])
            raise SettingsError(
                f"{variable(name)}={_shown(name, given.get(name, ''))!r}: {first['msg']}"
            ) from None  # the chain shows the values

    def shown(self) -> dict[str, str]:
        """Return every setting's value for people, secrets masked."""
        return {name: _shown(name, getattr(self, name)) for name in type(self).model_fields}

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        return [(name, _shown(name, value)) for name, value in self]

    def topic(self, stem: str) -> str:
        """Return the full name of a topic, for example `tokenline.usage`."""
        return f"{self.topic_prefix}{stem}"

    def to_env(self) -> dict[str, str]:
        """Return the variables that make a child process read these same settings."""
        return {
            variable(name): str(value)
            for name, value in self.model_dump().items()
            if value is not None and value != type(self).model_fields[name].default
        }


def injected_variables(environ: Mapping[str, str]) -> list[str]:
    """Return the variables that begin as ours do and that a container's surroundings have set."""
    return sorted(
        var for var in environ if var.startswith(PREFIX) and _is_injected(var, environ[var])
    )


def _is_injected(var: str, value: str) -> bool:
    name = var.removeprefix(PREFIX)
    if name.lower() in Settings.model_fields:
        # A Service called tokenline-charging-health sets what is also a setting of ours.
        return name.endswith("_PORT") and bool(_INJECTED_ADDRESS.fullmatch(value))
    return bool(
        _INJECTED.fullmatch(name)
        or (re.fullmatch(r"(?:\w+_)?PORT", name) and _INJECTED_ADDRESS.fullmatch(value))
        or (re.fullmatch(r"(?:\w+_)?NAME", name) and _INJECTED_NAME.fullmatch(value))
    )


def _shown(name: str, value: object) -> str:
    """Return a value without its secrets: a password, or what stands in an address."""
    field = Settings.model_fields.get(name)
    if field is not None and not field.repr:
        return MASK if value else ""
    return without_secrets(str(value))


def variable(name: str) -> str:
    """Return the environment variable of a field."""
    return FOREIGN.get(name, PREFIX + name.upper())
