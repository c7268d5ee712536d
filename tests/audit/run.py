"""Audits every pinned dependency with pip-audit: ``python -m tests.audit.run [--advisories CHECKOUT]``.

pip-audit is installed into an environment that is thrown away, so that what it needs does not become ours. It asks
PyPI, or a checkout of https://github.com/pypa/advisory-database where no network is. Before that it is asked about the
advisories in ``known.yaml``, which need no network.

Exit status 0: every dependency was looked up, and none is affected. 1: something is affected. 2: the audit did not
happen, or not for every dependency; that is no clean bill, and is never reported as one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.audit.advisories import known, of_checkout, service

ROOT: Final = Path(__file__).parents[2]
PINNED: Final = ROOT / "constraints.txt"


class Outcome(NamedTuple):
    """What an audit found: ``affected`` and ``unknown`` dependencies, a line each, and how many were looked up."""

    looked_up: int
    affected: list[str]
    unknown: list[str]

    @property
    def status(self) -> int:
        """The exit status."""
        return 1 if self.affected else 2 if self.unknown or not self.looked_up else 0


def pinned(path: Path = PINNED) -> dict[str, str]:
    """Return the version of each pinned dependency."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return {name: version for name, _, version in (line.partition("==") for line in lines if line)}


def install(directory: Path) -> Path | None:
    """Put pip-audit into a fresh environment; return its path, None where the package index is not reached."""
    venv.create(directory, with_pip=True)
    pip = [directory / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "install", "pip-audit"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(done.stderr, file=sys.stderr)
    return directory / "bin" / "pip-audit" if done.returncode == 0 else None


def ask(program: Path, pins: Path, osv_url: str | None = None) -> Outcome:
    """Run pip-audit over a file of pins; ``osv_url`` names another service than PyPI's."""
    where = [] if osv_url is None else ["--vulnerability-service", "osv", "--osv-url", osv_url]
    options = ["--requirement", pins, "--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
    done = subprocess.run([program, *options, *where], capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (json.JSONDecodeError, KeyError, TypeError):  # it ends with a traceback, and with 1, where nobody answers
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        return Outcome(0, [], [f"pip-audit ended with {done.returncode}: {last[0]}"])
    return judge(found, len(pinned(pins)))


def judge(found: Sequence[dict[str, Any]], expected: int) -> Outcome:
    """Return what pip-audit's report amounts to; what it skipped, or left out, is unknown and not fine.

    >>> judge([{"name": "a", "version": "1", "vulns": []}, {"name": "b", "skip_reason": "not found"}], 2).status
    2
    """
    affected = [
        f"{item['name']} {item['version']}: {hole['id']}, fixed in {', '.join(hole['fix_versions']) or 'no release'}"
        for item in found
        for hole in item.get("vulns", ())
    ]
    unknown = [f"{item['name']}: {item['skip_reason']}" for item in found if "skip_reason" in item]
    if len(found) < expected:
        unknown.append(f"{expected - len(found)} of {expected} dependencies are missing from pip-audit's report")
    return Outcome(len(found) - len([item for item in found if "skip_reason" in item]), affected, unknown)


def main(arguments: Sequence[str] | None = None) -> int:
    """Audit, say what came of it, and return the exit status."""
    parser = argparse.ArgumentParser(description="Audit every pinned dependency with pip-audit.")
    parser.add_argument("--advisories", type=Path, help="a checkout of PyPA's advisory database, asked instead of PyPI")
    parser.add_argument("--pinned", type=Path, default=PINNED, help="the file of pins (default: constraints.txt)")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        program = install(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="audit-"))))
        if program is None:
            print("NOT AUDITED: pip-audit could not be installed; it needs a package index.", file=sys.stderr)
            return 2
        ours = ask(program, options.pinned, stack.enter_context(service(known())))
        _say("the advisories kept in tests/audit/known.yaml", ours)
        if options.advisories is None:
            whole, source = ask(program, options.pinned), "PyPI's advisories"
        else:
            advisories = of_checkout(options.advisories, list(pinned(options.pinned)))
            url = stack.enter_context(service(advisories))
            newest = max((str(advisory.get("modified", "")) for advisory in advisories), default="none")[:10]
            source = f"{len(advisories)} advisories of {options.advisories}, the newest of {newest}"
            whole = ask(program, options.pinned, url)
        _say(source, whole)
    return 1 if 1 in (ours.status, whole.status) else max(ours.status, whole.status)


def _say(source: str, outcome: Outcome) -> None:
    print(f"{source}: {outcome.looked_up} dependencies looked up, {len(outcome.affected)} holes")
    for line in outcome.affected:
        print(f"  AFFECTED {line}")
    for line in outcome.unknown[:5]:
        print(f"  NOT AUDITED {line}")
    if len(outcome.unknown) > 5:
        print(f"  NOT AUDITED {len(outcome.unknown) - 5} more")


if __name__ == "__main__":
    sys.exit(main())
