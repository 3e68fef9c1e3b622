"""Say how Faust logs in at Kafka: as every other client of the line does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import faust

from tokenline.wire.kafka import client_options

if TYPE_CHECKING:
    from tokenline.settings import Settings


def faust_credentials(settings: Settings) -> Any:
    """Return `client_options` as Faust takes them, None for neither TLS nor a user."""
    options = client_options(settings)
    tls = options.get("ssl_context")
    if "sasl_mechanism" in options:
        return faust.SASLCredentials(
            mechanism=options["sasl_mechanism"],
            username=options["sasl_plain_username"],
            password=options["sasl_plain_password"],
            ssl_context=tls,
        )
    return faust.SSLCredentials(context=tls) if tls else None
