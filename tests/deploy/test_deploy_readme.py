"""deploy/README.md names files, options and anchors that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vqwatch_daemon.settings import Settings

from .tools import DEPLOY, ROOT, passes

TEXT = (DEPLOY / "README.md").read_text()
FOLDERS = "deploy|emitter|systemd|prometheus|alertmanager|grafana|kubernetes|slurm"
PATHS = sorted(set(re.findall(rf"(?<![\w/])(?:{FOLDERS})/[\w./-]*\w", TEXT)))


@pytest.mark.parametrize("path", PATHS)
def test_every_file_that_the_walkthroughs_name_exists(path: str) -> None:
    assert (ROOT / path).exists() or (DEPLOY / path).exists()


def test_every_link_inside_the_page_leads_somewhere() -> None:
    titles = re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    headings = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([\w-]+)\)", TEXT)) <= headings


def test_every_option_and_variable_is_one_of_the_daemon() -> None:
    options = {f"--{name.replace('_', '-')}" for name in Settings.model_fields}
    for line in re.findall(r"^vqwatch daemon (.+)$", TEXT, re.MULTILINE):
        assert set(re.findall(r"--[\w-]+", line)) <= options


def test_the_shell_lines_are_shell(tmp_path: Path) -> None:
    for number, block in enumerate(re.findall(r"```sh\n(.+?)```", TEXT, re.DOTALL)):
        script = tmp_path / f"{number}.sh"
        script.write_text(f"#!/bin/sh\n{block}")
        passes("bash", "-n", script)
