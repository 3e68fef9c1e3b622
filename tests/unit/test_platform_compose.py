"""docker-compose.yml keeps its promises; where docker has `compose`, it is asked too."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tokenline.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
WORKERS = ("charging", "landing")
ONE_SHOT = ("prepare",)


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def test_every_published_port_is_on_loopback(compose):
    published = [port for one in compose["services"].values() for port in one.get("ports", ())]
    assert len(published) == 3
    assert all(str(port).startswith("127.0.0.1:") for port in published)


def test_what_runs_on_has_a_health_check_and_what_ends_has_none(compose):
    for name, service in compose["services"].items():
        assert ("healthcheck" in service) == (name not in ONE_SHOT), name


def test_no_secret_has_a_default(compose):
    for name, service in compose["services"].items():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN$|KEY", variable):
                assert re.fullmatch(r"\$\{\w+:\?.+\}", str(value)), f"{name}: {variable}"


def test_data_lives_in_named_volumes(compose):
    mounted = {
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", ())
    }
    assert mounted == set(compose["volumes"]) == {"kafka-data", "clickhouse-data"}


def test_workers_can_be_scaled(compose):
    for name in WORKERS:
        worker = compose["services"][name]
        assert "ports" not in worker
        assert "container_name" not in worker
        assert worker["depends_on"]["prepare"]["condition"] == "service_completed_successfully"


def test_workers_have_no_power_they_do_not_need(compose):
    for name in (*WORKERS, *ONE_SHOT):
        worker = compose["services"][name]
        assert worker["read_only"] is True
        assert worker["cap_drop"] == ["ALL"]
    assert re.search(r"^USER 10001$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)


def test_workers_are_given_settings_that_exist(compose):
    for name in (*WORKERS, *ONE_SHOT):
        given = compose["services"][name]["environment"]
        plain = {
            variable: re.sub(r"\$\{\w+:-(.*)\}", r"\1", str(value))
            for variable, value in given.items()
        }
        settings = Settings.from_env(plain)
        assert settings.kafka_bootstrap == "kafka:9092"
        assert settings.schema_registry_url == "http://registry:8081"


def test_a_workers_health_is_asked_where_it_is_served(compose):
    for name in WORKERS:
        worker = compose["services"][name]
        port = worker["environment"][f"TOKENLINE_{name.upper()}_HEALTH_PORT"]
        assert f"127.0.0.1:{port}/healthz" in worker["healthcheck"]["test"][-1]


def test_the_image_is_built_from_what_is_listed(compose):
    kept = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    copied = set()
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY "):
            copied |= set(line.split()[1:-1])
    assert copied == kept


def test_docker_compose_accepts_the_file():
    docker = shutil.which("docker")
    known = docker and subprocess.run([docker, "compose", "version"], check=False,
                                      capture_output=True).returncode == 0  # fmt: skip
    if not known:
        return  # the tests above have read the file
    command = [docker, "compose", "--file", str(ROOT / "docker-compose.yml"), "config", "--quiet"]
    environ = {name: value for name, value in os.environ.items() if name != "CLICKHOUSE_PASSWORD"}
    without = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert without.returncode != 0
    assert "CLICKHOUSE_PASSWORD" in without.stderr
    subprocess.run(command, env=environ | {"CLICKHOUSE_PASSWORD": "given"}, check=True)
