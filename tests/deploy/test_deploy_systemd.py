"""systemd's own tools on deploy/systemd. They check what is written; the hardening is not run here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from vqwatch_daemon.settings import Settings

from .tools import DEPLOY, passes, run

SYSTEMD = DEPLOY / "systemd"
UNITS = [SYSTEMD / "vqwatch.service", SYSTEMD / "user" / "vqwatch.service"]
MOST_EXPOSURE = 2.0


def verified(unit: Path, directory: Path, change: tuple[str, str] = ("", "")) -> str:
    """Return what systemd-analyze says about a unit whose program exists."""
    text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(), flags=re.MULTILINE)
    copy = directory / unit.name
    copy.write_text(text.replace(*change) if change[0] else text)
    done = run("systemd-analyze", "verify", copy)
    return done.stdout + done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=["system", "user"])
def test_systemd_has_nothing_to_say_about_the_unit(unit: Path, tmp_path: Path) -> None:
    assert verified(unit, tmp_path) == ""


def test_systemd_would_find_a_misspelt_key(tmp_path: Path) -> None:
    assert "NoNewPrivilege" in verified(UNITS[0], tmp_path, ("NoNewPrivileges=", "NoNewPrivilege="))


def test_the_unit_is_exposed_as_little_as_stated() -> None:
    done = run("systemd-analyze", "security", "--offline=true", "--json=short", UNITS[0])
    assert done.returncode == 0, done.stderr
    items = json.loads(done.stdout)
    assert items
    [overall] = re.findall(
        r"Overall exposure level.*?: ([\d.]+)", passes("systemd-analyze", "security", "--offline=true", UNITS[0])
    )
    assert float(overall) <= MOST_EXPOSURE


def test_trainers_of_the_group_can_reach_the_socket_and_others_cannot() -> None:
    unit = UNITS[0].read_text()
    assert "RuntimeDirectoryMode=0750" in unit
    assert "UMask=0007" in unit
    assert "VQWATCH_LISTEN=ipc:///run/vqwatch/" in unit


def test_every_variable_is_an_option_of_the_daemon() -> None:
    options = {f"VQWATCH_{name.upper()}" for name in Settings.model_fields} | {"VQWATCH_CONFIG"}
    for file in [*UNITS, SYSTEMD / "vqwatch.env"]:
        assert set(re.findall(r"VQWATCH_[A-Z_]+(?==)", file.read_text())) <= options


def test_systemd_can_make_the_user() -> None:
    passes("systemd-sysusers", "--dry-run", SYSTEMD / "sysusers.conf")
