"""Steps on a device are kept, copied together and sent as bundles; here with the host in the place of the device."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

TOLD = {
    "takes_odd_inputs": "{'Step': 9, 'Codes': 3, 'Reconstruction': 4}",
    "delivers_what_the_tensors_held": "arrays equal, 30 steps in order",
    "delivers_ordinary_steps": "[120, 120, 15, 120, 120, 15, 6, 120, 15, 6, 120, 15]",
    "delivers_codes_now_and_then": "(80, 120)",
    "tells_the_rates_of_each_step": "200 steps",
    "delivers_steps_few_at_a_time": "[2, 3, 5, 7]",
    "delivers_steps_many_at_a_time": "kept at once: 1",
    "tells_a_sample_after_its_step": "each",
    "delivers_steps_of_any_length": "(120, 120)",
    "refuses_codes_that_are_none": "(116, 120)",
    "keeps_its_pace_around_pauses": "15 steps together",
    "delivers_by_way_of_device_memory": "codebooks, samples: 3 2",
    "delivers_large_ones_often": "codebooks, samples: 30",
    "finds_codebooks_again": "before and after",
    "tells_gradients_with_codebooks": "modules and tensors at each step",
    "tells_norms_of_layers_and_gradients": "steps with gradients, with energies: [",
    "tells_gradients_of_each_module_in_turn": "parts: 2, how often at least: ",
    "leaves_out_what_was_written_to": "codes that arrived, left out",
    "leaves_out_what_was_written_to_late": "only those missing: [True, True, True, True, True, True]",
    "goes_on_after_an_error": "steps lost: [",
    "delivers_whatever_is_told": "codes, steps: (",
    "leaves_training_bit_identical": "48 tensors equal",
}


@pytest.fixture(scope="module")
def done() -> subprocess.CompletedProcess[str]:
    """All checks, in one process: importing torch takes longer than most of them."""
    command = [sys.executable, str(HERE / "on_host.py"), *TOLD]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("check", TOLD)
def test_a_check_for_devices_passes_on_the_host(done: subprocess.CompletedProcess[str], check: str) -> None:
    said = next((line for line in done.stdout.splitlines() if line.startswith(f"{check} ")), "nothing")
    assert TOLD[check] in said, done.stderr


def test_the_process_that_checked_ends_well(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr
