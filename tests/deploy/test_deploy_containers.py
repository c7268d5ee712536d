"""hadolint and compose on the container files. No image is built here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from vqwatch_daemon.settings import Settings

from .tools import DEPLOY, ROOT, passes, run

COMPOSE = DEPLOY / "compose.yaml"


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """The project as compose understands it."""
    return dict(json.loads(passes("docker-compose", "-f", COMPOSE, "config", "--format", "json")))


def test_hadolint_has_nothing_to_say_about_the_dockerfile() -> None:
    assert passes("hadolint", "--failure-threshold", "style", DEPLOY / "Dockerfile") == ""


def test_hadolint_would_find_an_unpinned_image(tmp_path: Path) -> None:
    changed = tmp_path / "Dockerfile"
    changed.write_text((DEPLOY / "Dockerfile").read_text().replace(":3.13-slim-bookworm", ""))
    assert run("hadolint", changed).returncode != 0


def test_the_image_runs_as_an_ordinary_user_and_checks_its_health() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert re.findall(r"^USER (\d+)", text, re.MULTILINE)[-1] != "0"
    assert "HEALTHCHECK" in text


def test_everything_that_the_image_copies_is_there_and_is_let_through() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert copied
    let_through = re.findall(r"^!(\S+)", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert set(copied) == set(let_through)
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_compose_would_find_an_unknown_key(tmp_path: Path) -> None:
    changed = tmp_path / "compose.yaml"
    changed.write_text(COMPOSE.read_text().replace("mem_limit: 256m", "memory_limit: 256m"))
    assert run("docker-compose", "-f", changed, "config", "-q").returncode != 0


def test_every_service_is_hardened(project: dict[str, Any]) -> None:
    for name, service in project["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert int(service["mem_limit"]) > 0, name
        assert service["pids_limit"] > 0, name


def test_every_port_is_open_to_this_machine_only(project: dict[str, Any]) -> None:
    ports = [port for service in project["services"].values() for port in service["ports"]]
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}
    assert {port["target"] for port in ports} == {9815, 9090, 9093, 3000}


def test_every_image_has_a_version(project: dict[str, Any]) -> None:
    for name, service in project["services"].items():
        tag = service["image"].rpartition(":")[2]
        assert tag not in {"", "latest"}, name


def test_every_file_that_is_mounted_is_there(project: dict[str, Any]) -> None:
    made_by_the_user = {str(DEPLOY / "run"), str(DEPLOY / "state")}
    for service in project["services"].values():
        for volume in service["volumes"]:
            if volume["type"] == "bind" and volume["source"] not in made_by_the_user:
                assert Path(volume["source"]).is_dir(), volume["source"]


def test_every_variable_of_the_daemon_is_an_option_of_it(project: dict[str, Any]) -> None:
    options = {f"VQWATCH_{name.upper()}" for name in Settings.model_fields} | {"VQWATCH_CONFIG"}
    text = (DEPLOY / "Dockerfile").read_text()
    assert set(re.findall(r"(VQWATCH_[A-Z]+)=", text)) <= options
    assert set(project["services"]["vqwatch"]["environment"]) <= options


def test_grafana_is_provisioned_with_what_the_other_services_are_called(project: dict[str, Any]) -> None:
    grafana = project["services"]["grafana"]
    provisioning = DEPLOY / "grafana" / "provisioning"
    sources = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert {re.sub(r"https?://([^:]+).*", r"\1", source["url"]) for source in sources} <= set(project["services"])
    [provider] = yaml.safe_load((provisioning / "dashboards" / "vqwatch.yml").read_text())["providers"]
    assert provider["options"]["path"] in {volume["target"] for volume in grafana["volumes"]}
    interval = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert sources[0]["jsonData"]["timeInterval"] == interval
