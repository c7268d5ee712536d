from __future__ import annotations

from pathlib import Path

import pytest
import zmq
import zmq.auth

from vqwatch.settings import SettingsError, check_endpoint, resolve
from vqwatch.wire import default_endpoint


def test_arguments_come_before_the_environment() -> None:
    environment = {
        "VQWATCH_RUN": "theirs",
        "VQWATCH_RANK": "3",
        "VQWATCH_WORLD_SIZE": "8",
        "VQWATCH_ENDPOINT": "ipc://e",
    }
    given = resolve(environment, run="mine", rank=1, world_size=2, endpoint="ipc://a")
    assert (given.run, given.rank, given.world_size, given.endpoint) == ("mine", 1, 2, "ipc://a")
    found = resolve(environment)
    assert (found.run, found.rank, found.world_size, found.endpoint) == ("theirs", 3, 8, "ipc://e")


def test_without_anything_the_endpoint_is_the_users_own_socket() -> None:
    environment = {"XDG_RUNTIME_DIR": "/run/user/7"}
    settings = resolve(environment)
    assert settings.endpoint == default_endpoint(environment)
    assert (settings.run, settings.rank, settings.world_size) == ("default", 0, 1)


@pytest.mark.parametrize("environment", [{"VQWATCH_DISABLED": "1"}, {"VQWATCH_ENDPOINT": ""}])
def test_disabled_means_no_endpoint(environment: dict[str, str]) -> None:
    assert resolve(environment).endpoint == ""


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "[::1]"])
def test_tcp_on_this_machine_needs_no_keys(host: str) -> None:
    check_endpoint(f"tcp://{host}:9816", encrypted=False)


@pytest.mark.parametrize(
    "host", ["10.0.0.7", "daemon.example.org", "0.0.0.0", "[2001:db8::1]", "localhost.example.org"]
)
def test_tcp_beyond_this_machine_needs_keys_or_a_permission_by_name(host: str) -> None:
    endpoint = f"tcp://{host}:9816"
    with pytest.raises(SettingsError, match="CURVE"):
        check_endpoint(endpoint, encrypted=False)
    check_endpoint(endpoint, encrypted=True)
    assert resolve({"VQWATCH_ALLOW_PLAIN_TCP": "1"}, endpoint=endpoint).endpoint == endpoint


@pytest.mark.parametrize(
    "endpoint",
    ["udp://1.2.3.4:5", "nonsense", "tcp://localhost", "tcp://localhost:0", "tcp://:5", "ipc://" + "x" * 108],
)
def test_an_endpoint_that_cannot_be_is_refused_by_name(endpoint: str) -> None:
    with pytest.raises(SettingsError, match="endpoint="):
        resolve({}, endpoint=endpoint)


@pytest.mark.parametrize(
    ("name", "value"),
    [("rank", -1), ("rank", "x"), ("world_size", 0), ("run", ""), ("run", "a\nb"), ("run", "x" * 200), ("budget", 0.0)],
)
def test_a_value_that_cannot_be_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(SettingsError, match=name):
        resolve({}, **{name: value})


def test_keys_come_from_the_certificate_that_zmq_writes(tmp_path: Path) -> None:
    server, _ = zmq.curve_keypair()
    public_file, secret_file = zmq.auth.create_certificates(tmp_path, "trainer")
    keys = resolve({"VQWATCH_SERVER_KEY": server.decode(), "VQWATCH_KEY_FILE": secret_file}).keys
    assert keys is not None
    assert (keys.server, keys.public, keys.secret) == (server, *zmq.auth.load_certificate(secret_file))
    with pytest.raises(SettingsError, match="no secret key"):
        resolve({"VQWATCH_SERVER_KEY": server.decode(), "VQWATCH_KEY_FILE": public_file})


def test_half_a_set_of_keys_is_refused() -> None:
    with pytest.raises(SettingsError, match="daemon's key is missing"):
        resolve({"VQWATCH_KEY_FILE": "/nowhere"})
    with pytest.raises(SettingsError, match="40 characters"):
        resolve({"VQWATCH_SERVER_KEY": "short"})
    with pytest.raises(SettingsError, match="key_file="):
        resolve({"VQWATCH_SERVER_KEY": "x" * 40, "VQWATCH_KEY_FILE": "/nowhere"})
