"""Flag before environment before file before default; mistakes are named with their place and value."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from vqwatch_daemon import settings
from vqwatch_daemon.settings import Settings, SettingsError

HOME = {"XDG_RUNTIME_DIR": "/run/user/7"}


def loaded(*flags: str, **environment: str) -> Settings:
    parser = argparse.ArgumentParser()
    settings.add_arguments(parser)
    return settings.load(parser.parse_args(flags), {**HOME, **environment})


def test_without_anything_the_daemon_listens_where_emitters_look() -> None:
    assert loaded().listen == ["ipc:///run/user/7/vqwatch/vqwatch.sock"]
    assert loaded().http == "127.0.0.1:9815"


def test_a_flag_goes_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "vqwatch.toml"
    file.write_text('window = 5\nmax_runs = 5\nhttp = "127.0.0.1:5"\n')
    found = loaded("--config", str(file), "--window", "7", VQWATCH_WINDOW="6", VQWATCH_MAX_RUNS="6")
    assert (found.window, found.max_runs, found.http) == (7, 6, "127.0.0.1:5")


def test_the_file_may_be_named_in_the_environment_and_lists_there_have_commas(tmp_path: Path) -> None:
    file = tmp_path / "vqwatch.toml"
    file.write_text('alertmanager = ["http://a:9093", "http://b:9093"]\n')
    assert loaded(VQWATCH_CONFIG=str(file)).alertmanager == ["http://a:9093", "http://b:9093"]
    assert loaded(VQWATCH_ALERTMANAGER="http://a:1, http://b:2").alertmanager == ["http://a:1", "http://b:2"]


def test_a_repeated_flag_adds_up() -> None:
    assert loaded("--alertmanager", "http://a:1", "--alertmanager", "http://b:2").alertmanager == [
        "http://a:1",
        "http://b:2",
    ]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("windows = 5", r"unknown key 'windows'; allowed: .*window"),
        ("window = 0", r"key window: .*greater than or equal to 2 \(got 0\)"),
        ("window = ", r"vqwatch\.toml: "),
        ('http = "nowhere"', r"key http: 'nowhere' is not ADDRESS:PORT"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_key_and_value(tmp_path: Path, content: str, complaint: str) -> None:
    file = tmp_path / "vqwatch.toml"
    file.write_text(content)
    with pytest.raises(SettingsError, match=complaint):
        loaded("--config", str(file))


def test_a_mistake_in_the_environment_is_named_with_its_variable() -> None:
    with pytest.raises(SettingsError, match=r"VQWATCH_MAX_RUNS: .*\(got 'many'\)"):
        loaded(VQWATCH_MAX_RUNS="many")


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(SettingsError, match=r"/nowhere\.toml: No such file"):
        loaded("--config", "/nowhere.toml")
