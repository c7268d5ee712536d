"""Makes the modules beside the tests importable (cases, stand-ins, the receiver), and prints the table of families."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from ledger import LEDGER

PAGE = Path(__file__).parent / "README.md"


def pytest_addoption(parser: Any) -> None:
    """Known where this folder is named on the command line."""
    parser.addoption("--write-families", action="store_true", help=f"write the table of families into {PAGE.name}")


def pytest_sessionfinish(session: Any, exitstatus: int) -> None:
    """Write the table, of a run in which nothing failed."""
    if session.config.getoption("--write-families", False) and exitstatus == 0 and LEDGER.rows:
        PAGE.write_text(LEDGER.page(), encoding="utf-8")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if LEDGER.rows:
        terminalreporter.section("quantizer families: what arrived, compared with what the library itself says")
        for line in LEDGER.table():
            terminalreporter.write_line(line)
