"""Say which schema has which id.

Two registries: files that travel with the code (the default; ids in `schemas/ids.json`), and any
Confluent-compatible server. An id, once issued, means the same text for ever: both cache for ever, and
what a server answered is kept on disk as well. Who reads registers nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tokenline.errors import SettingsError, UnknownSchema

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenline.settings import Settings

IDS_FILE = "ids.json"


class Registry(Protocol):
    """Map schema ids to texts and names to their newest id.

    All that look for a schema raise `UnknownSchema`; a server-backed one may block for one request an id and raise
    `RegistryUnavailable`, which is no verdict on the bytes: try again.
    """

    def ask(self) -> None:
        """Return when the registry answers; registers nothing."""
        ...

    def newest_id(self, name: str) -> int:
        """Return the id that writers of `name` use, the newest this process knows; may register it."""
        ...

    def newest_text(self, name: str) -> str:
        """Return the newest schema of `name` that came with this code; asks no server."""
        ...

    def text(self, schema_id: int) -> str:
        """Return the schema's JSON."""
        ...

    def name(self, schema_id: int) -> str:
        """Return the record's name without namespace, for example `usage_event`."""
        ...

    def unmet(self, frames: Iterable[bytes | None]) -> set[int]:
        """Return the ids in these frames that a server would have to be asked for; asks none."""
        ...

    def look_up(self, ids: Iterable[int]) -> None:
        """Ask for these ids, so that their texts are at hand; may block. What fails is met again later."""
        ...


class FileRegistry:
    """Read schemas and ids from a directory, once; the default is the one that came with the code.

    Raises:
        SettingsError: the directory, `ids.json` or a file it names is missing or not JSON.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory or schemas_dir()
        self._files = {int(key): stem for key, stem in self._read_ids().items()}
        self._texts = {key: self._read(f"{stem}.avsc") for key, stem in self._files.items()}
        self._newest: dict[str, tuple[int, int]] = {}
        for schema_id, stem in self._files.items():
            name, version = split_stem(stem)
            self._newest[name] = max(self._newest.get(name, (0, 0)), (version, schema_id))

    def ask(self) -> None:
        """Do nothing: files are there."""

    def newest_id(self, name: str) -> int:
        """Return the id of the highest version of `name`."""
        try:
            return self._newest[name][1]
        except KeyError:
            raise UnknownSchema(f"no schema is named {name}; there are {self.names()}") from None

    def newest_text(self, name: str) -> str:
        """Return the schema of the highest version of `name`."""
        return self.text(self.newest_id(name))

    def unmet(self, frames: Iterable[bytes | None]) -> set[int]:  # noqa: ARG002  all ids are known or never will be
        """Return none."""
        return set()

    def look_up(self, ids: Iterable[int]) -> None:
        """Do nothing: files are there."""

    def text(self, schema_id: int) -> str:
        """Return the schema's JSON."""
        try:
            return self._texts[schema_id]
        except KeyError:
            raise UnknownSchema(f"schema id {schema_id} is not in {IDS_FILE}") from None

    def name(self, schema_id: int) -> str:
        """Return the record's name."""
        try:
            return split_stem(self._files[schema_id])[0]
        except KeyError:
            raise UnknownSchema(f"schema id {schema_id} is not in {IDS_FILE}") from None

    def versions(self, name: str) -> list[tuple[int, str]]:
        """Return (version, text) of every version of `name`, oldest first."""
        found = [(split_stem(stem), self._texts[key]) for key, stem in self._files.items()]
        return sorted((version, text) for (record, version), text in found if record == name)

    def names(self) -> list[str]:
        """Return every record name."""
        return sorted(self._newest)

    def _read_ids(self) -> dict[str, str]:
        ids: dict[str, str] = json.loads(self._read(IDS_FILE))
        return ids

    def _read(self, file: str) -> str:
        try:
            text = (self.directory / file).read_text(encoding="utf-8")
            json.loads(text)
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"cannot read schema file {self.directory / file}: {error}"
            ) from error
        return text


def open_registry(settings: Settings) -> Registry:
    """Return the registry that the settings name: a server when a URL is given, else the files."""
    if settings.schema_registry_url:
        from tokenline.wire.registry_server import ConfluentRegistry  # noqa: PLC0415  few need it

        return ConfluentRegistry(settings)
    return FileRegistry()


def name_in(text: str) -> str:
    """Return the name without namespace of the record that a schema is of; empty when it is of none."""
    parsed = json.loads(text)
    full = parsed.get("name", "") if isinstance(parsed, dict) else ""
    return str(full).rpartition(".")[2]


def schemas_dir() -> Path:
    """Return where the schemas are: inside the wheel, or beside `src` in a checkout."""
    packed = Path(__file__).parents[1] / "_schemas"
    return packed if packed.is_dir() else Path(__file__).parents[3] / "schemas"


def split_stem(stem: str) -> tuple[str, int]:
    """Return name and version of a file stem: `usage_event.v1` is ("usage_event", 1)."""
    name, _, version = stem.rpartition(".v")
    if not name or not version.isdigit():
        raise SettingsError(f"{IDS_FILE}: {stem!r} is not <name>.v<number>")
    return name, int(version)
