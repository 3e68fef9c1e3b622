"""A gateway whose disk gets full says so to each call, sends what it has, and goes on when there is room."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.integration import full_gateway_disk
from tokenline import Settings
from tokenline.wire.kafka import client_options
from tokenline.wire.topics import ensure_topics

SMALL = "size=600k"


@pytest.fixture
async def line(kafka):
    """A line whose broker takes no large event."""
    settings = Settings(partitions=2, **kafka.access(), topic_prefix=f"t{uuid.uuid4().hex[:8]}.")
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    limit = {"max.message.bytes": "3000"}
    await admin.create_topics([NewTopic(settings.topic("usage"), 2, 1, topic_configs=limit)])
    await admin.close()
    await ensure_topics(settings)
    return settings


async def run(line, directory, how):
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        full_gateway_disk.__file__,
        *(str(directory), how),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "LINE": line.model_dump_json(), "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    out, said = await asyncio.wait_for(child.communicate(), 90)
    assert out.decode().rstrip().endswith("ok"), (out + said).decode()[-3000:]


async def test_where_no_file_may_grow_everything_goes_on_when_they_may_again(line, tmp_path):
    await run(line, tmp_path, "limit")


@pytest.fixture
def small(tmp_path):
    """A small disk, and how it gets full; who may not mount one has a limit of files."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", SMALL, "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        yield place, "limit"
        return
    yield place, "filler"
    subprocess.run(["umount", str(place)], check=True)


async def test_on_a_small_disk_of_its_own_everything_goes_on_when_there_is_room(line, small):
    await run(line, *small)
