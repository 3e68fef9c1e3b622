"""Send one signed test message to an endpoint, so that a receiver can be tried before it is needed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import aiohttp

from tokenline.masking import printable, without_secrets
from tokenline.notify.notification import iso_of
from tokenline.notify.signing import Secret, sign

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenline.notify.endpoints import Endpoint

TYPE = "webhook.test"


async def probe(
    endpoint: Endpoint, secrets: Sequence[Secret], now_ms: int, timeout_ms: int
) -> tuple[bool, str]:
    """Return whether the endpoint took the message, and its answer in words."""
    said = {"type": TYPE, "timestamp": iso_of(now_ms), "data": {"endpoint": endpoint.name}}
    body = json.dumps(said, separators=(",", ":")).encode()
    headers = sign(secrets, f"msg_test_{now_ms}", now_ms // 1000, body)
    headers["content-type"] = "application/json"
    timeout = aiohttp.ClientTimeout(total=timeout_ms / 1000)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(endpoint.url, data=body, headers=headers, allow_redirects=False) as answer,
        ):
            return 200 <= answer.status <= 299, f"HTTP {answer.status}"
    except TimeoutError:
        return False, f"no answer in {timeout_ms} ms"
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return False, f"{type(error).__name__}: {printable(without_secrets(str(error)))}"
