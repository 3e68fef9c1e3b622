"""Ask a schema registry over HTTP: any server that speaks Confluent's interface.

What it answered is kept on disk. A server that is away or hangs is left alone for a while, and unknown ids
are asked for so many a second at most: bad bytes name random ids.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tokenline.clock import Clock, SystemClock
from tokenline.errors import RegistryUnavailable, SettingsError, TokenlineError, UnknownSchema
from tokenline.wire.registry import FileRegistry, Registry, name_in
from tokenline.wire.registry_cache import SchemaCache

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenline.settings import Settings

_HEADER = struct.Struct(">bI")
# Bad bytes name random ids; without this each of them would be a request to the server.
UNKNOWN_FOR_S = 30.0
UNKNOWN_MAX = 10_000
# Nor may a stream of them be one: beyond this they are not asked for.
ASKED_PER_S = 20
# A server that did not answer is left alone for a while. Who may not wait takes ids for unknown meanwhile,
# and for longer: each question may cost his partition `ANSWER_WITHIN_S`.
AWAY_FOR_S = 5.0
UNKNOWN_WHILE_AWAY_S = 60.0
ANSWER_WITHIN_S = 2
HTTP_NOT_FOUND = 404

# Which topic carries a schema as its main value. Those that share a topic have
# the record's name in their subject as well (TopicRecordNameStrategy).
TOPIC_OF = {
    "usage_event": "usage",
    "account_command": "commands",
    "hold_order": "holds",
    "quota_decision": "decisions",
    "account_window": "windows",
    "balance_change": "balances",
    "charged_range": "charged",
    "dead_letter": "dead-letters",
    "gateway_total": "control",
    "order_reply": "replies",
    "catalog_version": "catalog",
    "line_identity": "line",
}
SHARED_TOPIC_OF = {
    "charging_heartbeat": "decisions",
    "account_order": "commands",
    "clock_tick": "commands",
}


class ConfluentRegistry:
    """Ask a Confluent-compatible server; register our newest schemas under their topics.

    The reader's schema stays the newest that came with this code: a writer that is ahead of us is
    read as far as we know it. Subjects follow TopicNameStrategy (`<topic>-value`). While the server is
    away, what is kept on disk does: texts of ids, and the ids of our own schemas.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        local: FileRegistry | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._settings = settings
        self._local = local or FileRegistry()
        self._clock = clock or SystemClock()
        self._client = _client(settings)
        self._kept = SchemaCache(settings.data_dir, settings.schema_registry_url)
        self._ids: dict[str, int] = {}
        self._unknown: dict[int, float] = {}
        self._away_until_s = 0.0
        self._asked_in_s, self._asked = -1, 0

    def ask(self) -> None:
        """Ask the server for its subjects, unless schemas of it are kept: then nobody needs it to begin."""
        if self._kept.texts:
            return
        from confluent_kafka.schema_registry.error import SchemaRegistryError  # noqa: PLC0415  an extra

        try:
            self._client.get_subjects()
            self._away_until_s = 0.0
        except SchemaRegistryError as error:
            # Who may not list subjects has an answer all the same.
            if error.http_status_code >= 500:
                raise RegistryUnavailable(f"the registry failed: {error}") from error
        except Exception as error:  # the client leaks its HTTP library's own errors
            raise self._away(error) from error

    def newest_id(self, name: str) -> int:
        """Return the server's id of our newest `name`; the first call registers it, or finds it kept."""
        if name not in self._ids:
            self._ids[name] = self._own_id(self.subject(name), self.newest_text(name))
        return self._ids[name]

    def newest_text(self, name: str) -> str:
        """Return our own newest schema of `name`."""
        return self._local.newest_text(name)

    def text(self, schema_id: int) -> str:
        """Return the schema's JSON; the first call for an id asks the server."""
        if schema_id not in self._kept.texts:
            self._kept.keep_text(schema_id, self._fetch(schema_id))
        return self._kept.texts[schema_id]

    def unmet(self, frames: Iterable[bytes | None]) -> set[int]:
        """Return the ids in these frames whose text is not known."""
        heads = {frame[: _HEADER.size] for frame in frames if frame}
        ids = {_HEADER.unpack(head)[1] for head in heads if len(head) == _HEADER.size}
        return ids - self._kept.texts.keys()

    def name(self, schema_id: int) -> str:
        """Return the record's name, taken from the schema itself."""
        return name_in(self.text(schema_id))

    def knows(self, schema_id: int) -> bool:
        """Say whether the text of an id is known; asks no server."""
        return schema_id in self._kept.texts

    def look_up(self, ids: Iterable[int]) -> None:
        """Ask the server for ids; blocking, for `ANSWER_WITHIN_S` when it is away."""
        for schema_id in ids:
            with suppress(UnknownSchema, RegistryUnavailable):
                self.text(schema_id)

    def subject(self, name: str) -> str:
        """Return the subject under which `name` is registered."""
        if name in SHARED_TOPIC_OF:
            return f"{self._settings.topic(SHARED_TOPIC_OF[name])}-tokenline.{name}"
        return f"{self._settings.topic(TOPIC_OF.get(name, name))}-value"

    def _own_id(self, subject: str, text: str) -> int:
        try:
            schema_id = self._register(subject, text)
        except RegistryUnavailable:
            kept = self._kept.subjects.get(subject)
            if kept is None or self._kept.texts.get(kept) != text:
                raise
            return kept
        self._kept.keep_subject(subject, schema_id, text)
        return schema_id

    def _register(self, subject: str, text: str) -> int:
        from confluent_kafka.schema_registry import Schema  # noqa: PLC0415  an extra: only this class needs it
        from confluent_kafka.schema_registry.error import SchemaRegistryError  # noqa: PLC0415  as above

        try:
            found = int(self._client.register_schema(subject, Schema(text, "AVRO")))
        except SchemaRegistryError as error:
            if error.http_status_code < 500:
                raise SettingsError(f"the registry refuses subject {subject}: {error}") from error
            raise RegistryUnavailable(f"the registry failed on {subject}: {error}") from error
        except Exception as error:  # the client leaks its HTTP library's own errors
            raise self._away(error) from error
        self._away_until_s = 0.0
        return found

    def _fetch(self, schema_id: int) -> str:
        from confluent_kafka.schema_registry.error import SchemaRegistryError  # noqa: PLC0415  as above

        self._may_ask(schema_id)
        try:
            return str(self._client.get_schema(schema_id).schema_str)
        except SchemaRegistryError as error:
            if error.http_status_code != HTTP_NOT_FOUND:
                self._leave_alone()
                raise RegistryUnavailable(
                    f"the registry failed on id {schema_id}: {error}"
                ) from error
            self._remember_unknown(schema_id)
            raise UnknownSchema(f"schema id {schema_id} is not in the registry") from error
        except Exception as error:  # as above
            raise self._away(error) from error

    def _may_ask(self, schema_id: int) -> None:
        now_s = self._clock.monotonic_s()
        if now_s < self._unknown.get(schema_id, -1.0):
            raise UnknownSchema(f"schema id {schema_id} is not in the registry")
        if now_s < self._away_until_s:
            url = self._settings.schema_registry_url
            raise RegistryUnavailable(f"the schema registry at {url} did not answer a moment ago")
        if int(now_s) != self._asked_in_s:
            self._asked_in_s, self._asked = int(now_s), 0
        self._asked += 1
        if self._asked > ASKED_PER_S:
            raise UnknownSchema(
                f"schema id {schema_id} was not asked for: too many unknown ids come at once"
            )

    def _remember_unknown(self, schema_id: int) -> None:
        if len(self._unknown) >= UNKNOWN_MAX:
            self._unknown.clear()
        self._unknown[schema_id] = self._clock.monotonic_s() + UNKNOWN_FOR_S

    def _away(self, error: Exception) -> RegistryUnavailable:
        url = self._settings.schema_registry_url
        self._leave_alone()
        return RegistryUnavailable(f"the schema registry at {url} did not answer: {error}")

    def _leave_alone(self) -> None:
        self._away_until_s = self._clock.monotonic_s() + AWAY_FOR_S


class KnownSchemas:
    """Answer from what a registry is known to say, at once; whoever may wait calls `look_up` before.

    An id that the server did not answer for is an unknown schema: nobody waits behind one bad record.
    """

    def __init__(self, registry: ConfluentRegistry, clock: Clock | None = None) -> None:
        self._registry = registry
        self._clock = clock or SystemClock()
        self._away_until_s = 0.0
        self._why: dict[int, str] = {}

    def ask(self) -> None:
        """Ask the server, if nothing of it is kept."""
        self._registry.ask()

    def newest_id(self, name: str) -> int:
        """Return the id that writers of `name` use; may register it."""
        return self._registry.newest_id(name)

    def newest_text(self, name: str) -> str:
        """Return our own newest schema of `name`."""
        return self._registry.newest_text(name)

    def unmet(self, frames: Iterable[bytes | None]) -> set[int]:
        """Return the ids in these frames whose text is not known."""
        return self._registry.unmet(frames)

    def look_up(self, ids: Iterable[int]) -> None:
        """Ask the server for ids; blocking, for `ANSWER_WITHIN_S` when it is away. Raises nothing of it."""
        if self._clock.monotonic_s() < self._away_until_s:
            return
        for schema_id in ids:
            try:
                self._registry.text(schema_id)
            except UnknownSchema as error:
                self._note(schema_id, error)
            except RegistryUnavailable as error:
                self._note(schema_id, error)
                self._away_until_s = self._clock.monotonic_s() + UNKNOWN_WHILE_AWAY_S
                return

    def text(self, schema_id: int) -> str:
        """Return the schema's JSON, if it is known."""
        if self._registry.knows(schema_id):
            return self._registry.text(schema_id)
        raise UnknownSchema(self._why.get(schema_id, f"schema id {schema_id} is not known yet"))

    def _note(self, schema_id: int, error: TokenlineError) -> None:
        if len(self._why) >= UNKNOWN_MAX:
            self._why.clear()
        self._why[schema_id] = str(error)

    def name(self, schema_id: int) -> str:
        """Return the record's name."""
        return name_in(self.text(schema_id))


def known_only(registry: Registry) -> Registry:
    """Return a registry that never waits for a server while it reads."""
    return KnownSchemas(registry) if isinstance(registry, ConfluentRegistry) else registry


def _client(settings: Settings) -> Any:  # noqa: ANN401  the client library ships loose types
    try:
        from confluent_kafka.schema_registry import SchemaRegistryClient  # noqa: PLC0415  an extra
    except ImportError as error:
        raise SettingsError(
            "SCHEMA_REGISTRY_URL needs: pip install 'tokenline[registry]'"
        ) from error
    options: dict[str, Any] = {
        "url": settings.schema_registry_url,
        "timeout": ANSWER_WITHIN_S,
        # Whoever asks tries again; a worker's partition stands still meanwhile.
        "max.retries": 0,
    }
    user = settings.schema_registry_username
    if user:
        options["basic.auth.user.info"] = f"{user}:{settings.schema_registry_password}"
    return SchemaRegistryClient(options)
