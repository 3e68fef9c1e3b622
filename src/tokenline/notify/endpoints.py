"""Read the webhooks file.

[[endpoints]]
name = "crm"                          # for ever: it is where this endpoint's progress is kept
url = "https://crm.example/hooks"     # http:// only to this machine
secret_env = ["CRM_SECRET"]           # names of variables that hold `whsec_...`; several while one is replaced
secret_file = ["crm.key"]             # or files that do, beside this one
kinds = ["threshold", "cut"]          # absent means all: threshold, cut, resumed
tenants = ["default"]                 # absent means all
"""

from __future__ import annotations

import ipaddress
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from tokenline.errors import SettingsError
from tokenline.notify.notification import Kind
from tokenline.notify.signing import Secret
from tokenline.texts import read_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenline.notify.notification import Notification

URL_MAX = 2048


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _sendable(url: str) -> str:
    parts = urlsplit(url)
    try:
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host = ""
    # pydantic shows what it refuses; `_read` keeps that out, because a URL may hold a password.
    if parts.username is not None or parts.password is not None:
        raise ValueError("name and password in a URL end up in logs: sign instead")
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError("write https://host/path")
    if parts.scheme == "http" and not _is_loopback(host):
        raise ValueError("http:// is for this machine only: what is told would be open to read")
    return url


class Endpoint(BaseModel):
    """Hold who is told, what, and with which secrets; those are shown by nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
    url: Annotated[str, Field(max_length=URL_MAX), AfterValidator(_sendable)]
    secret_env: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    secret_file: tuple[Path, ...] = ()
    kinds: Annotated[tuple[Kind, ...], Field(min_length=1)] = tuple(Kind)
    tenants: tuple[Annotated[str, Field(min_length=1)], ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Endpoint:
        if not (self.secret_env or self.secret_file):
            raise ValueError("name its secret: secret_env or secret_file")
        return self

    def wants(self, notification: Notification) -> bool:
        """Say whether this endpoint is to be told."""
        known = not self.tenants or notification.tenant_id in self.tenants
        return known and notification.kind in self.kinds

    def secrets(self, environ: Mapping[str, str], beside: Path) -> tuple[Secret, ...]:
        """Return the secrets; relative files lie in the folder `beside`.

        Raises:
            SettingsError: one is missing or malformed; the text names where it was looked for.
        """
        found = []
        for name in self.secret_env:
            if name not in environ:
                raise SettingsError(f"endpoint {self.name}: the variable {name} is not set")
            found.append(_secret(f"endpoint {self.name}: {name}", environ[name]))
        found += [
            _secret(f"endpoint {self.name}: {file}", read_text(beside / file, SettingsError))
            for file in self.secret_file
        ]
        return tuple(found)


class WebhooksFile(BaseModel):
    """Hold a whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoints: tuple[Endpoint, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> WebhooksFile:
        names = [one.name for one in self.endpoints]
        for at, name in enumerate(names):
            if name in names[:at]:
                raise ValueError(f"two endpoints are called {name}")
        return self


def read_webhooks(
    path: Path, environ: Mapping[str, str]
) -> list[tuple[Endpoint, tuple[Secret, ...]]]:
    """Return the endpoints of a file with their secrets.

    Raises:
        SettingsError: file, endpoint or secret is missing or wrong; the text names it.
    """
    return [(one, one.secrets(environ, path.parent)) for one in _read(path).endpoints]


def secret_variables(path: Path) -> frozenset[str]:
    """Return the names of the variables in which a file has its secrets.

    Raises:
        SettingsError: the file is missing or wrong; the text names it.
    """
    return frozenset(name for one in _read(path).endpoints for name in one.secret_env)


def _read(path: Path) -> WebhooksFile:
    try:
        said: Any = tomllib.loads(read_text(path, SettingsError))
        return WebhooksFile.model_validate(said)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        # Without the chain: its text shows the values, and a URL may hold a password.
        raise SettingsError(f"{path}: {where}: {first['msg']}") from None


def _secret(where: str, text: str) -> Secret:
    try:
        return Secret(text.strip())
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}") from error
