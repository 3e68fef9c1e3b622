"""Lead a test's line to the shared broker, so that its workers log in there each as its role."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tokenline.platform.kafka import EmbeddedKafka
from tokenline.platform.secrets import FILE, write_private
from tokenline.settings import Settings
from tokenline.wire.acls import ensure_acls


def line_on(broker: EmbeddedKafka, data_dir: Path, **fields: Any) -> Settings:
    """Return settings of a line of the test's own; they log in as the broker's `admin`.

    What a test does itself it may do; its workers find their passwords in `data_dir` and have the rights
    of their role, no others.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    write_private(data_dir / FILE, (broker.data_dir / FILE).read_text())
    settings = Settings(**broker.access(), data_dir=data_dir, **fields)
    give_rights(settings)
    return settings


def give_rights(settings: Settings) -> None:
    """Give the roles their rights at this line's topics, wherever it is called from."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, ensure_acls(settings)).result()
