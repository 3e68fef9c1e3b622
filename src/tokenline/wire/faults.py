"""Say what an error of Kafka's client means: a setting is wrong, or the broker is away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiokafka.conn import create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.metadata import MetadataRequest

from tokenline.errors import BrokerUnavailable, SettingsError
from tokenline.wire.kafka import client_options

if TYPE_CHECKING:
    from tokenline.settings import Settings

NO_RIGHT = (
    TopicAuthorizationFailedError,
    GroupAuthorizationFailedError,
    ClusterAuthorizationFailedError,
)
NO_LOGIN = (
    SaslAuthenticationFailed,
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    UnsupportedSaslMechanismError,
)
_PROBE_MS = 2000


async def fault_of(settings: Settings, error: BaseException) -> SettingsError | BrokerUnavailable:
    """Return what to raise for an error of a client; nothing here raises it.

    A client that could not connect tells no reason, so the first server is asked once more.
    """
    where = f"Kafka at {settings.kafka_bootstrap}"
    who = settings.kafka_username or "a client without a user"
    if isinstance(error, NO_RIGHT):
        return SettingsError(
            f"{where} does not let {who} do this: {_short(error)}; `tokenline topics --acls` prints "
            "what each role needs"
        )
    if not isinstance(error, KafkaConnectionError):
        return BrokerUnavailable(f"{where}: {error!r}")
    found = await _probe(settings)
    if isinstance(found, NO_LOGIN):
        return SettingsError(
            f"{where} refuses {who} or its password (TOKENLINE_KAFKA_USERNAME, _PASSWORD, "
            f"_SASL_MECHANISM={settings.kafka_sasl_mechanism}): {_short(found)}"
        )
    hint = "; it hangs up on us: does it want TLS or a user (TOKENLINE_KAFKA_SECURITY)?"
    return BrokerUnavailable(f"{where}: {error!r}{hint if found is not None else ''}")


async def _probe(settings: Settings) -> Exception | None:
    """Return why a server that answers takes us not; None where none answers, or it is well now."""
    options = client_options(settings)
    host, _, port = options.pop("bootstrap_servers")[0].rpartition(":")
    if not port.isdigit():
        return None
    try:
        link = await create_conn(
            host.strip("[]"), int(port), request_timeout_ms=_PROBE_MS, **options
        )
    except NO_LOGIN as error:
        refused: Exception = error
        return refused
    except (KafkaError, OSError, TimeoutError):
        return None
    try:
        await link.send(MetadataRequest([]))
    except (KafkaError, OSError, TimeoutError) as error:
        broken: Exception = error
        return broken
    finally:
        link.close()
    return None


def _short(error: BaseException) -> str:
    return f"{type(error).__name__} {', '.join(map(str, error.args))}".rstrip()
