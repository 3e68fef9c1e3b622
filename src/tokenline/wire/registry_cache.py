"""Keep what a schema registry answered on disk, so that a worker starts and reads while it is away.

An id, once issued, means the same text for ever, so what is kept never goes stale. A registry at another
address has other ids: its answers replace these.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import NamedTemporaryFile

import structlog

FILE = "registry.json"
# Whoever may register schemas could fill the disk with them.
IDS_MAX = 2_000
TEXT_MAX_CHARS = 64 * 1024

_log = structlog.get_logger(__name__)


class SchemaCache:
    """Hold texts by id, and ids by subject, of the registry at one address.

    Processes of one data directory share the file; the last to write wins, and what it did not know is
    asked for again.
    """

    def __init__(self, directory: Path, url: str) -> None:
        self._path, self._url = directory / FILE, url
        self.texts: dict[int, str] = {}
        self.subjects: dict[str, int] = {}
        self._load()

    def keep_text(self, schema_id: int, text: str) -> None:
        """Keep the text of an id."""
        if len(self.texts) < IDS_MAX and len(text) <= TEXT_MAX_CHARS:
            self.texts[schema_id] = text
            self._save()

    def keep_subject(self, subject: str, schema_id: int, text: str) -> None:
        """Keep which id our own schema has under a subject."""
        self.subjects[subject] = schema_id
        self.texts[schema_id] = text
        self._save()

    def _load(self) -> None:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            if found["url"] == self._url:
                self.texts = {int(key): str(text) for key, text in found["texts"].items()}
                self.subjects = {str(key): int(one) for key, one in found["subjects"].items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _log.warning("kept schemas cannot be read", file=str(self._path), error=str(error))

    def _save(self) -> None:
        kept = {"url": self._url, "texts": self.texts, "subjects": self.subjects}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with NamedTemporaryFile(
                "w", dir=self._path.parent, delete=False, encoding="utf-8"
            ) as draft:
                json.dump(kept, draft)
            Path(draft.name).replace(self._path)
        except OSError as error:
            # The registry answers again next time.
            _log.warning("schemas are not kept", file=str(self._path), error=str(error))
