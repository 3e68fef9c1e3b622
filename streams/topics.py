"""Make Faust topics that hand raw records over; wire/topics.py says what each one carries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streams.line_app import LineApp
from streams.transport import PassThrough

if TYPE_CHECKING:
    from tokenline.settings import Settings


def raw_topic(app: LineApp, settings: Settings, stem: str) -> Any:
    """Return a topic of micro-batches; Faust does not create it (`ensure_topics` does)."""
    return app.topic(settings.topic(stem), schema=PassThrough(), internal=False, allow_empty=True)
