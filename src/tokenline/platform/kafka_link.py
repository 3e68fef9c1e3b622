"""Speak Kafka's protocol on one loopback connection: log in, look, set users; no client, no event loop.

The supervisor asks a broker that is still starting, from any thread.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

from aiokafka.conn import ScramAuthenticator

from tokenline.errors import PlatformError
from tokenline.platform.processes import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Iterator

MECHANISM = "SCRAM-SHA-256"
ITERATIONS = 4096  # Kafka's least; the passwords are random, so nobody guesses them
_METADATA, _HANDSHAKE, _AUTHENTICATE, _SET_USERS = 3, 17, 36, 51
_SCRAM_SHA_256 = 1
_TIMEOUT_S = 2.0


class RefusedLogin(PlatformError):
    """Report that a broker answers and takes this user's password for wrong."""


class KafkaLink:
    """Hold one connection; usable as a context manager.

    Raises:
        OSError: nobody answers, or not in time.
    """

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection((LOOPBACK, port), _TIMEOUT_S)
        self._socket.settimeout(_TIMEOUT_S)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._socket.close()

    def log_in_plain(self, user: str, password: str) -> None:
        """Log in as the controller's listener wants it; raises as `log_in`."""
        self._begin("PLAIN")
        self._authenticate(f"\0{user}\0{password}".encode())

    def log_in(self, user: str, password: str) -> None:
        """Log in as clients do; a listener that is not ours learns no password.

        Raises:
            RefusedLogin: the password is not this user's.
            OSError: the connection broke.
        """
        self._begin(MECHANISM)
        steps = ScramAuthenticator(
            loop=None, sasl_plain_username=user, sasl_plain_password=password,
            sasl_mechanism=MECHANISM,
        ).authenticator_scram()  # fmt: skip
        payload, _ = next(steps)
        try:
            while True:
                payload, _ = steps.send(self._authenticate(payload))
        except StopIteration:
            return
        except ValueError as error:
            raise RefusedLogin(f"who listens there does not know the password: {error}") from error

    def brokers(self) -> int:
        """Return how many brokers the metadata names; a broker names itself when it takes requests."""
        answer = self._ask(_METADATA, 4, struct.pack(">i?", 0, False))
        return int(struct.unpack_from(">ii", answer)[1])

    def set_users(self, passwords: Mapping[str, str]) -> None:
        """Let these users log in with these passwords from now on, on a controller's listener.

        Raises:
            PlatformError: it refuses.
        """
        upserts = b"".join(_upsert(user, password) for user, password in passwords.items())
        count = _varint(len(passwords) + 1)
        answer = self._ask(_SET_USERS, 0, _varint(1) + count + upserts + b"\0", flexible=True)
        for user, code in _results(answer):
            if code:
                raise PlatformError(f"Kafka does not take the password of {user}: error {code}")

    def _begin(self, mechanism: str) -> None:
        (code,) = struct.unpack_from(">h", self._ask(_HANDSHAKE, 1, _string(mechanism)))
        if code:
            raise RefusedLogin(f"it takes no {mechanism}: error {code}")

    def _authenticate(self, payload: bytes) -> bytes:
        answer = self._ask(_AUTHENTICATE, 0, struct.pack(">i", len(payload)) + payload)
        code, size = struct.unpack_from(">hh", answer)
        if code:
            raise RefusedLogin(answer[4 : 4 + max(size, 0)].decode(errors="replace"))
        at = 4 + max(size, 0)
        (size,) = struct.unpack_from(">i", answer, at)
        return answer[at + 4 : at + 4 + size]

    def _ask(self, key: int, version: int, body: bytes, *, flexible: bool = False) -> bytes:
        """Return the body of the answer to one request."""
        tags = b"\0" if flexible else b""
        request = struct.pack(">hhih", key, version, 1, -1) + tags + body
        self._socket.sendall(struct.pack(">i", len(request)) + request)
        (size,) = struct.unpack(">i", self._read(4))
        return self._read(size)[4 + len(tags) :]

    def _read(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            some = self._socket.recv(size - len(found))
            if not some:
                raise ConnectionError("Kafka closed the connection")
            found += some
        return found


def broker_answers(port: int, user: str, password: str) -> bool:
    """Say whether a client that logs in would find the broker in its metadata now."""
    try:
        with KafkaLink(port) as link:
            link.log_in(user, password)
            return link.brokers() > 0
    except (OSError, RefusedLogin):
        return False


def _upsert(user: str, password: str) -> bytes:
    salt = secrets.token_bytes(32)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, ITERATIONS)
    name = user.encode()
    numbers = struct.pack(">bi", _SCRAM_SHA_256, ITERATIONS)
    return _sized(name) + numbers + _sized(salt) + _sized(salted) + b"\0"


def _results(answer: bytes) -> Iterator[tuple[str, int]]:
    """Yield user and error code of each result; behind them stand a text, if any, and tags."""
    count, at = _varint_at(answer, 4)
    for _ in range(count - 1):
        size, at = _varint_at(answer, at)
        user = answer[at : at + size - 1].decode()
        at += size - 1
        (code,) = struct.unpack_from(">h", answer, at)
        yield user, code
        size, at = _varint_at(answer, at + 2)
        at += max(size - 1, 0) + 1


def _string(text: str) -> bytes:
    return struct.pack(">h", len(text)) + text.encode()


def _sized(value: bytes) -> bytes:
    """Write bytes as compact ones: their length and one, as a varint, stands before them."""
    return _varint(len(value) + 1) + value


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def _varint_at(data: bytes, at: int) -> tuple[int, int]:
    """Return a varint and where the next byte is."""
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
