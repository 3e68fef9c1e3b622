"""Settings come from the environment, and the environment is also somebody else's."""

from __future__ import annotations

import pytest

from tests.paper_orders import run_command
from tokenline.errors import SettingsError
from tokenline.settings import Settings, injected_variables

# What Kubernetes sets for Services called tokenline, tokenline-kafka and tokenline-charging-health,
# and Docker for a link.
INJECTED = {
    "TOKENLINE_PORT": "tcp://10.0.0.1:80",
    "TOKENLINE_SERVICE_HOST": "10.0.0.1",
    "TOKENLINE_SERVICE_PORT": "80",
    "TOKENLINE_SERVICE_PORT_HTTP": "80",
    "TOKENLINE_PORT_80_TCP": "tcp://10.0.0.1:80",
    "TOKENLINE_PORT_80_TCP_PROTO": "tcp",
    "TOKENLINE_PORT_80_TCP_PORT": "80",
    "TOKENLINE_PORT_80_TCP_ADDR": "10.0.0.1",
    "TOKENLINE_PORT_53_UDP": "udp://10.0.0.1:53",
    "TOKENLINE_KAFKA_PORT": "tcp://10.0.0.2:9092",
    "TOKENLINE_KAFKA_SERVICE_HOST": "10.0.0.2",
    "TOKENLINE_KAFKA_SERVICE_PORT_PLAIN": "9092",
    "TOKENLINE_KAFKA_PORT_9092_TCP_ADDR": "10.0.0.2",
    "TOKENLINE_CHARGING_HEALTH_PORT": "tcp://10.0.0.3:19101",
    "TOKENLINE_NAME": "/web/tokenline",
}


def test_what_kubernetes_and_docker_set_for_a_service_called_tokenline_is_no_setting():
    assert Settings.from_env(INJECTED | {"TOKENLINE_PARTITIONS": "7"}) == Settings(partitions=7)
    assert injected_variables(INJECTED) == sorted(INJECTED)


@pytest.mark.parametrize(
    "unknown",
    [
        {"TOKENLINE_PORT": "80"},
        {"TOKENLINE_KAFKA_PORT": "9092"},
        {"TOKENLINE_KAFKA_BOOTSTRAP_": "a:1"},
        {"TOKENLINE_PARTITION": "7"},
        {"TOKENLINE_NAME": "x"},
        {"TOKENLINE_SERVICE_HOSTS": "x"},
        {"TOKENLINE_PORT_X_TCP": "x"},
        {"TOKENLINE_ENV_PARTITIONS": "7"},
    ],
)
def test_every_other_unknown_name_is_an_error_still(unknown):
    with pytest.raises(SettingsError, match=f"{next(iter(unknown))} is not a setting"):
        Settings.from_env(INJECTED | unknown)


def test_a_setting_stays_one_whatever_the_services_are_called():
    given = {"TOKENLINE_CHARGING_HEALTH_PORT": "19200"}
    assert Settings.from_env(given).charging_health_port == 19200
    assert injected_variables(given) == []
    with pytest.raises(SettingsError, match="CHARGING_HEALTH_PORT"):
        Settings.from_env({"TOKENLINE_CHARGING_HEALTH_PORT": "many"})


def test_a_command_says_once_what_it_ignores(capsys, monkeypatch):
    for name, value in INJECTED.items():
        monkeypatch.setenv(name, value)
    code, out, said = run_command(capsys, "settings", "--json")
    assert code == 0
    assert out.startswith("[")
    assert len(said) == 1
    assert "and 14 more are ignored" in said[0]
    assert "enableServiceLinks" in said[0]
