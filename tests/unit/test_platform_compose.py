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
from tokenline.wire.rights import ROLES, registry_acls

ROOT = Path(__file__).resolve().parents[2]
WORKERS = ("charging", "landing", "notify")
ONE_SHOT = ("prepare", "rights")
SECRET = re.compile(r"\$\{(\w*PASSWORD)(:\?[^}]*)?\}")


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


def test_every_password_is_asked_for_and_made_by_the_command_of_the_first_lines(compose):
    """`docker compose` fails with the variable's name where one is missing, wherever it stands."""
    used = {}
    for service in compose["services"].values():
        for value in service.get("environment", {}).values():
            used |= dict(SECRET.findall(str(value)))
    assert all(hint.startswith(":?") for hint in used.values())
    text = (ROOT / "docker-compose.yml").read_text()
    loop = re.search(r"for name in ([A-Z_ \\\n#]+?)\n#\s+do echo", text)[1]
    made = {f"{name}_PASSWORD" for name in re.findall(r"[A-Z_]+", loop)}
    assert made == set(used) | {"KAFKA_OPERATOR_PASSWORD", "KAFKA_READER_PASSWORD"}
    ignored = (ROOT / ".gitignore").read_text().split()
    assert {".env", "webhooks.env"} <= set(ignored)


def test_kafka_lets_nobody_in_without_a_password_and_gives_no_right_unasked(compose):
    kafka = compose["services"]["kafka"]["environment"]
    protocols = kafka["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")
    listeners = {one.split("://")[0] for one in kafka["KAFKA_LISTENERS"].split(",")}
    assert {one.split(":")[0] for one in protocols} == listeners
    assert {one.split(":")[1] for one in protocols} == {"SASL_PLAINTEXT"}
    assert kafka["KAFKA_AUTHORIZER_CLASS_NAME"].endswith("StandardAuthorizer")
    assert kafka["KAFKA_ALLOW_EVERYONE_IF_NO_ACL_FOUND"] == "false"
    assert "CONTROLLER://localhost:" in kafka["KAFKA_LISTENERS"]
    for listener in ("INSIDE", "HOST"):
        users = kafka[f"KAFKA_LISTENER_NAME_{listener}_PLAIN_SASL_JAAS_CONFIG"]
        assert set(re.findall(r'user_(\w+)="', users)) == {"admin", "registry", *ROLES}


def test_each_worker_logs_in_as_its_role(compose):
    for name in WORKERS:
        given = compose["services"][name]["environment"]
        assert given["TOKENLINE_KAFKA_USERNAME"] == name
        assert given["TOKENLINE_KAFKA_PASSWORD"].startswith(f"${{KAFKA_{name.upper()}_PASSWORD:?")
    for name in ONE_SHOT:
        assert compose["services"][name]["environment"]["TOKENLINE_KAFKA_USERNAME"] == "admin"


def test_the_registry_holds_schemas_to_the_rules_of_the_schemas(compose):
    wanted = re.search(r"server's compatibility to (\w+)", (ROOT / "schemas/README.md").read_text())
    registry = compose["services"]["registry"]["environment"]
    assert registry["KARAPACE_COMPATIBILITY"] == wanted[1]
    rights = {(acl.resource, acl.name) for acl in registry_acls()}
    assert ("topic", registry["KARAPACE_TOPIC_NAME"]) in rights
    assert ("group", registry["KARAPACE_GROUP_ID"]) in rights
    assert compose["services"]["registry"]["depends_on"]["rights"]["condition"] == (
        "service_completed_successfully"
    )


def test_a_worker_that_must_not_be_started_again_is_not(compose):
    """`unless-stopped` starts all again; so what runs in the container does not end then."""
    for name in WORKERS:
        worker = compose["services"][name]
        assert worker["command"] == ["python", "-m", "tokenline.platform.container", name]
        assert worker["restart"] == "unless-stopped"
    for name in ONE_SHOT:
        assert compose["services"][name]["restart"] == "on-failure:3"


def test_gateways_are_told_what_a_registry_needs():
    head = (ROOT / "docker-compose.yml").read_text().split("\nname:")[0]
    assert "SCHEMA_REGISTRY_URL" in head
    assert "tokenline[registry]" in head


def test_webhooks_are_told_where_a_file_names_them(compose):
    notify = compose["services"]["notify"]
    assert notify["profiles"] == ["webhooks"]
    (mount,) = notify["volumes"]
    assert mount["target"] == notify["environment"]["TOKENLINE_WEBHOOKS_FILE"]
    assert (mount["read_only"], mount["bind"]) == (True, {"create_host_path": False})
    assert [name for name, one in compose["services"].items() if "env_file" in one] == ["notify"]


def test_data_lives_in_named_volumes(compose):
    mounted = {
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", ())
        if isinstance(volume, str)
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
            variable: re.sub(r"\$\{\w+:[-?](.*)\}", r"\1", str(value))
            for variable, value in given.items()
        }
        settings = Settings.from_env(plain)
        assert settings.kafka_bootstrap == "kafka:9092"
        assert settings.schema_registry_url == "http://registry:8081"
        assert settings.kafka_security == "SASL_PLAINTEXT"


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
    names = set(re.findall(r"\$\{(\w+PASSWORD):", (ROOT / "docker-compose.yml").read_text()))
    environ = {name: value for name, value in os.environ.items() if name not in names}
    without = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert without.returncode != 0
    assert "PASSWORD" in without.stderr
    subprocess.run(command, env=environ | dict.fromkeys(names, "given"), check=True)
