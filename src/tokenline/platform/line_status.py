"""Look which line a running stack holds, and whether all of it is one line."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tokenline.errors import TokenlineError
from tokenline.landing.line import require_own, warehouse_line
from tokenline.platform.stack_file import ComponentStatus, find_stack
from tokenline.wire.line import read_line

if TYPE_CHECKING:
    from pathlib import Path


def line_status(data_dir: Path) -> ComponentStatus:
    """Return the line as if it were a component: ready when Kafka and warehouse hold the same."""
    try:
        settings = find_stack(data_dir, "reader", warehouse="auditor")
        line, known = asyncio.run(read_line(settings)), warehouse_line(settings)
        require_own(settings, line, known)
    except TokenlineError as error:
        return ComponentStatus("line", "not ready", None, 0, str(error))
    if not known:
        detail = f"{line.line_id}; the warehouse has not taken it on yet"
        return ComponentStatus("line", "not ready", None, 0, detail)
    return ComponentStatus(
        "line", "ready", None, 0, f"{line.line_id} in {settings.clickhouse_database}"
    )
