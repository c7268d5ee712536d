"""The daemon does not listen with libraries whose holes are published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from vqwatch_daemon import cli, versions


def test_the_versions_in_use_are_fine() -> None:
    assert versions.too_old() == ""


@pytest.mark.parametrize(
    ("libzmq", "of_msgpack", "said"),
    [
        ((4, 3, 4), (1, 2, 1), "libzmq 4.3.4"),
        ((4, 2, 9), (1, 3, 0), "libzmq 4.2.9"),
        ((4, 3, 5), (1, 2, 0), "msgpack 1.2.0"),
        ((4, 10, 0), (1, 1, 9), "msgpack 1.1.9"),
    ],
)
def test_a_version_with_a_known_hole_is_refused_at_the_start(
    libzmq: tuple[int, ...],
    of_msgpack: tuple[int, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(zmq, "zmq_version_info", lambda: libzmq)
    monkeypatch.setattr(msgpack, "version", of_msgpack)
    listen: list[Any] = ["--listen", f"ipc://{tmp_path}/s"]
    for command in (["daemon", *listen, "--http", "127.0.0.1:0"], ["record", *listen, "-o", str(tmp_path / "r")]):
        assert cli.main(command) == 2
        error = capsys.readouterr().err
        assert said in error
        assert "pip install --upgrade" in error
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("libzmq", "of_msgpack"), [((4, 3, 5), (1, 2, 1)), ((4, 10, 0), (1, 10, 0)), ((5, 0, 0), (2, 0, 0))]
)
def test_newer_versions_are_taken(
    libzmq: tuple[int, ...], of_msgpack: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zmq, "zmq_version_info", lambda: libzmq)
    monkeypatch.setattr(msgpack, "version", of_msgpack)
    assert versions.too_old() == ""
