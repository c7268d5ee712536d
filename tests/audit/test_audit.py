"""What vqwatch is made of has no published hole that is known here, and an audit that did not happen is not a pass."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from tests.audit.advisories import against, known, of_checkout, service
from tests.audit.run import PINNED, ROOT, ask, install, judge, pinned
from tests.servers import free_port

from vqwatch_daemon import versions
from vqwatch_daemon.evaluate import checkpoints


def requirements() -> Iterator[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    of_users = (group for name, group in project["optional-dependencies"].items() if name != "dev")
    for group in (project["dependencies"], *of_users):
        yield from (Requirement(text) for text in group if not text.startswith("vqwatch["))


def test_no_pinned_version_is_known_to_be_affected() -> None:
    pins = pinned()
    assert len(pins) > 100
    assert {name: against(known(), name, version) for name, version in pins.items() if
            against(known(), name, version)} == {}  # fmt: skip


@pytest.mark.parametrize("requirement", list(requirements()), ids=lambda requirement: requirement.name)
def test_the_oldest_version_that_is_allowed_is_not_known_to_be_affected(requirement: Requirement) -> None:
    bounds = [Version(item.version) for item in requirement.specifier if item.operator == ">="]
    of_it = [item for item in known() if item["affected"][0]["package"]["name"] == canonicalize_name(requirement.name)]
    if of_it:
        assert bounds, f"{requirement} allows every version, and some have {[item['id'] for item in of_it]}"
    assert [item["id"] for bound in bounds for item in against(of_it, requirement.name, str(bound))] == []


@pytest.mark.parametrize(
    ("package", "oldest"),
    [
        ("libzmq", versions.OLDEST_LIBZMQ),
        ("msgpack", versions.OLDEST_MSGPACK),
    ],
)
def test_the_versions_that_the_daemon_refuses_are_at_least_the_affected_ones(
    package: str, oldest: tuple[int, ...]
) -> None:
    assert any(item["affected"][0]["package"]["name"] == package for item in known())
    assert against(known(), package, ".".join(map(str, oldest))) == []


def test_torch_is_trusted_with_checkpoints_only_where_no_hole_in_its_loading_is_known() -> None:
    def of_loading(version: str) -> list[str]:
        return [item["id"] for item in against(known(), "torch", version) if "weights_only" in item["summary"]]

    assert of_loading(".".join(map(str, checkpoints.OLDEST_TORCH))) == []
    assert of_loading("2.9.1") == ["GHSA-63cw-57p8-fm3p"]


def test_what_pip_audit_skipped_or_left_out_is_not_a_pass() -> None:
    fine: dict[str, Any] = {"name": "a", "version": "1", "vulns": []}
    assert judge([fine], 1).status == 0
    assert judge([fine, {"name": "b", "skip_reason": "not found"}], 2).status == 2
    assert judge([fine], 2).status == 2
    assert judge([], 0).status == 2


def test_a_checkout_of_the_database_is_read_as_its_format_says(tmp_path: Path) -> None:
    folder = tmp_path / "vulns" / "some-thing"
    folder.mkdir(parents=True)
    (folder / "PYSEC-1.yaml").write_text(
        "id: PYSEC-1\naffected:\n- package: {name: some-thing, ecosystem: PyPI}\n  ranges:\n  - type: ECOSYSTEM\n"
        "    events: [{introduced: '0'}, {fixed: 1.6.2}, {introduced: '1.7'}, {fixed: 1.7.4}]\n  versions: ['9.0']\n"
    )
    (folder / "PYSEC-2.yaml").write_text((folder / "PYSEC-1.yaml").read_text() + "withdrawn: 2026-01-01T00:00:00Z\n")
    found = of_checkout(tmp_path, ["Some_Thing", "other"])
    assert len(found) == 2
    affected = [version for version in ("1.0", "1.6.2", "1.7", "1.7.3", "1.7.4", "9.0")
                if [item["id"] for item in against(found, "some.thing", version)] == ["PYSEC-1"]]  # fmt: skip
    assert affected == ["1.0", "1.7", "1.7.3", "9.0"]
    with pytest.raises(FileNotFoundError, match="no checkout"):
        of_checkout(folder, ["other"])


# --- the real pip-audit ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    installed = install(tmp_path_factory.mktemp("audit"))
    if installed is None:
        reason = "pip-audit cannot be installed"
        (pytest.fail if os.environ.get("CI", "").lower() in {"1", "true"} else pytest.skip)(reason)
    assert installed is not None
    return installed


def test_pip_audit_finds_the_hole_in_an_old_version(program: Path, tmp_path: Path) -> None:
    pins = tmp_path / "pins.txt"
    pins.write_text("msgpack==1.2.0\nnumpy==2.4.6\nstarlette==1.0.0\n")
    with service(known()) as url:
        outcome = ask(program, pins, url)
    assert outcome.status == 1
    assert outcome.looked_up == 3
    assert "msgpack 1.2.0: CVE-2026-57585, fixed in 1.2.1" in outcome.affected
    assert sum(line.startswith("starlette 1.0.0: PYSEC-2026-161") for line in outcome.affected) == 1
    assert not any(line.startswith("numpy") for line in outcome.affected)


def test_pip_audit_looks_up_every_pin_and_finds_nothing(program: Path) -> None:
    with service(known()) as url:
        assert ask(program, PINNED, url) == (len(pinned()), [], [])


def test_an_advisory_service_that_does_not_answer_is_no_pass(program: Path) -> None:
    outcome = ask(program, PINNED, f"http://127.0.0.1:{free_port()}/v1/query")
    assert outcome.status == 2
    assert outcome.looked_up == 0
    assert "pip-audit ended with 1" in outcome.unknown[0]
