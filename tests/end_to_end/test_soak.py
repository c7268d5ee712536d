"""The judge of the hour's soak, and half a minute of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.end_to_end.flatness import Bound, judge
from tests.end_to_end.soak import soak

TIMES = np.arange(240) * 15.0
NOISE = np.random.default_rng(0).normal(size=240)


def test_noise_around_a_level_is_flat() -> None:
    assert judge(TIMES, 100 + NOISE, Bound(0.05, 0.0)).flat


def test_what_grows_before_the_second_sixth_is_warm_up() -> None:
    assert judge(TIMES, np.minimum(TIMES, 500.0), Bound(0.0, 0.0)).flat


@pytest.mark.parametrize("per_hour", [10.0, 40.0])
def test_a_slow_leak_is_not_flat(per_hour: float) -> None:
    leaking = judge(TIMES, 100 + per_hour * TIMES / 3600 + NOISE, Bound(0.05, 0.0))
    assert not leaking.flat
    assert leaking.per_hour == pytest.approx(per_hour, abs=1.0)


def test_a_measurement_that_is_missing_is_not_flat() -> None:
    assert not judge(TIMES, np.where(TIMES == 300.0, np.nan, 1.0), Bound(1.0, 1.0)).flat
    assert not judge([], [], Bound(1.0, 1.0)).flat


@pytest.mark.alone
@pytest.mark.timeout(180)
def test_twenty_seconds_of_the_standard_load_lose_nothing_and_leave_nothing_open(tmp_path: Path) -> None:
    report = soak(tmp_path, minutes=1 / 3, ranks=2, rate=10.0, every=1.0, options=["--snapshot-seconds", "1"])
    assert not any(report["missing"].values()), report
    grown = [name for name, verdict in report["series"].items() if not verdict.flat]
    assert not set(grown) & {"daemon descriptors", "daemon threads", "a sender's descriptors", "a sender's threads"}
