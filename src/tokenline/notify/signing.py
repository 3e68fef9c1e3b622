"""Sign and verify as the Standard Webhooks specification 1.0.0 has it, symmetric scheme `v1`.

    webhook-id          names the message, the same at each attempt
    webhook-timestamp   when this attempt was made, in seconds since the epoch
    webhook-signature   `v1,` and base64 of HMAC-SHA256 over `id.timestamp.body`; several, separated by a
                        space, while a secret is being replaced

A secret is 24 to 64 random bytes, written as `whsec_` and their base64.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import TYPE_CHECKING

from tokenline.errors import InvalidSignature, SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PREFIX = "whsec_"
VERSION = "v1"
KEY_BYTES_MIN, KEY_BYTES_MAX = 24, 64
TOLERANCE_S = 300


class Secret:
    """Hold the key of an endpoint; neither `repr` nor an error shows it.

    Raises:
        SettingsError: the text is not `whsec_` and base64 of 24 to 64 bytes.
    """

    __slots__ = ("key",)

    def __init__(self, text: str) -> None:
        try:
            key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if not text.startswith(PREFIX) or not KEY_BYTES_MIN <= len(key) <= KEY_BYTES_MAX:
            raise SettingsError(
                f"a secret is {PREFIX} and base64 of {KEY_BYTES_MIN} to {KEY_BYTES_MAX} bytes: "
                f"python -c \"import base64, os; print('{PREFIX}' + base64.b64encode(os.urandom(32)).decode())\""
            )
        self.key = key

    def __repr__(self) -> str:
        return "Secret(***)"


def sign(
    secrets: Iterable[Secret], message_id: str, timestamp_s: int, body: bytes
) -> dict[str, str]:
    """Return the three headers of an attempt made at `timestamp_s`, signed with each secret."""
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": " ".join(
            f"{VERSION},{_mac(secret, message_id, timestamp_s, body)}" for secret in secrets
        ),
    }


def verify(
    secret: str | Iterable[str],
    headers: Mapping[str, str],
    body: bytes,
    now_s: int,
    tolerance_s: int = TOLERANCE_S,
) -> str:
    """Return the id of a message that is authentic and fresh; drop it if you had that id before.

    `secret` is one `whsec_...` or several of which one must fit; `body` the bytes as they came, before
    any parsing; `now_s` the receiver's clock.

    Raises:
        InvalidSignature: a header is missing or malformed, the time is out of tolerance, or no
            signature fits.
        SettingsError: a secret is malformed.
    """
    given = {name.lower(): value for name, value in headers.items()}
    try:
        message_id, stamp = given["webhook-id"], given["webhook-timestamp"]
        signatures = given["webhook-signature"].split(" ")
    except KeyError as error:
        raise InvalidSignature(f"the header {error.args[0]} is missing") from None
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) <= 15):
        raise InvalidSignature("webhook-timestamp is not a whole number of seconds")
    if abs(now_s - int(stamp)) > tolerance_s:
        raise InvalidSignature(f"webhook-timestamp is more than {tolerance_s} s from now")
    texts = [secret] if isinstance(secret, str) else list(secret)
    expected = [
        f"{VERSION},{_mac(Secret(text), message_id, int(stamp), body)}".encode() for text in texts
    ]
    # Each is compared with each, however early one fits.
    fits = [hmac.compare_digest(_bytes(one), mac) for one in signatures for mac in expected]
    if not any(fits):
        raise InvalidSignature("no signature fits")
    return message_id


def _mac(secret: Secret, message_id: str, timestamp_s: int, body: bytes) -> str:
    content = _bytes(f"{message_id}.{timestamp_s}.") + body
    return base64.b64encode(hmac.digest(secret.key, content, hashlib.sha256)).decode()


def _bytes(text: str) -> bytes:
    """Return a header's bytes; servers show those that are no UTF-8 as lone surrogates."""
    return text.encode(errors="surrogatepass")
