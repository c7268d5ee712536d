"""Steps on a device are kept, copied together and sent as bundles; here with the host in the place of the device."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("check", "told"),
    [
        ("takes_odd_inputs", "{'Step': 8, 'Codes': 3"),
        ("delivers_what_the_tensors_held", "arrays equal, 30 steps in order"),
        ("delivers_ordinary_steps", "[120, 120, 8, 120, 120, 8]"),
        ("leaves_out_what_was_written_to", "codes that arrived, left out"),
        ("leaves_training_bit_identical", "48 tensors equal"),
    ],
)
def test_a_check_for_devices_passes_on_the_host(check: str, told: str) -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / "on_host.py"), check], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert f"{check} " in done.stdout
    assert told in done.stdout
