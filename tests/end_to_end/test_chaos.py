"""The short form of ``make soak``."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.end_to_end.chaos import chaos

pytestmark = pytest.mark.alone


@pytest.mark.timeout(180)
def test_a_daemon_killed_ten_times_under_four_ranks_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    report = chaos(tmp_path, kills=10, ranks=4, longest_life=0.6)
    assert report.flawless, report
    assert report.worst_p99_seconds < 0.1, report
