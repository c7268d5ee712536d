"""Makes the modules beside the tests importable (cases, stand-ins, the receiver), and prints the table of families."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from ledger import LEDGER


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if LEDGER.rows:
        terminalreporter.section("quantizer families: what arrived, compared with what the library itself says")
        for line in LEDGER.table():
            terminalreporter.write_line(line)
