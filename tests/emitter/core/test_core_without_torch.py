"""Trainers that have no torch, such as those in JAX: everything that ``step()`` takes arrives whole, from anything with
``__dlpack__``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tests.emitter.core.daemon import Daemon
from tests.emitter.core.hand import array

PROGRAM = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("this trainer has no torch")

sys.meta_path.insert(0, NoTorch())

import numpy as np
import vqwatch

class Exported:
    "Somebody's array: it has the protocol, and nothing else."
    __slots__ = ("_array",)

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()

given = np.load(sys.argv[2])
codes, original, reconstructed, mask = (given[name] for name in ("codes", "original", "reconstructed", "mask"))
original, mask = np.asfortranarray(original), np.repeat(mask, 2, -1)[..., ::2]
watch = vqwatch.attach(endpoint=sys.argv[1], run="no torch", budget=float("inf"), every={"reconstruction": 1})
assert watch.flush(20.0)

for step, of in enumerate((np.asarray, Exported)):
    arrays = {"original": of(original), "reconstructed": of(reconstructed), "mask": of(mask)}
    watch.step(
        2 * step, losses={"total": of(np.array([1.5], np.float32)), "vq": of(np.array(0.25))}, codes=of(codes),
        grad_norm=of(np.array(2.5)), lr=[of(np.array(0.125, np.float16))], **arrays,
    )
    layers = [of(codes[..., layer]) for layer in range(3)]
    watch.step(2 * step + 1, losses=of(np.array(1.5)), codes=layers if step else dict(enumerate(layers)), **arrays)
    with watch.evaluation(2 * step) as ev:
        ev.update(codes=of(codes), scalars={"mine": of(np.array(0.5))}, **arrays)
assert watch.flush(20.0)
print(watch.dropped, [name for name in sys.modules if name.partition(".")[0] == "torch"])
watch.close(20.0)
"""

random = np.random.default_rng(0)
FEATURES = random.random((2, 3, 4, 6)).astype(np.float32)
GIVEN = {
    "codes": random.integers(-1, 256, (2, 3, 4, 3)), "original": FEATURES, "reconstructed": 2 * FEATURES,
    "mask": random.random((2, 3, 4)) > 0.5,
}  # fmt: skip


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    made = Daemon()
    yield made
    made.close()


def test_all_that_a_step_takes_arrives_whole_where_there_is_no_torch(daemon: Daemon, tmp_path: Any) -> None:
    np.savez(tmp_path / "given.npz", **GIVEN)
    command = [sys.executable, "-c", PROGRAM, daemon.endpoint, str(tmp_path / "given.npz")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as trainer:
        while trainer.poll() is None:
            daemon.turn()
        output, said = trainer.communicate()
    assert output == "{} []\n", output + said
    assert daemon.rejected == []
    for step in range(4):
        (told,) = daemon.of("step", step)
        if step % 2:
            assert told.losses == {"total": 1.5}
        else:
            assert told.losses == {"total": 1.5, "vq": 0.25}
            assert (told.gradient_norm, told.learning_rates) == (2.5, {"0": 0.125})
        (codes,) = daemon.of("codes", step)
        (sample,) = daemon.of("reconstruction", step)
        assert codes.layers == ("0", "1", "2")
        check(codes.indices, codes.mask, sample)
    for step in (0, 2):
        begin, batch, end = daemon.of("evaluation", step)
        assert (begin.phase, batch.scalars, end.phase) == ("begin", {"mine": 0.5}, "end")
        check(batch.codes, batch.mask, batch)


def check(codes: Any, mask: Any, pair: Any) -> None:
    """Compare what arrived with what the trainer had."""
    np.testing.assert_array_equal(array(codes), np.moveaxis(GIVEN["codes"], -1, 0))
    np.testing.assert_array_equal(array(mask), GIVEN["mask"])
    np.testing.assert_array_equal(array(pair.mask), GIVEN["mask"])
    np.testing.assert_array_equal(array(pair.original), GIVEN["original"])
    np.testing.assert_array_equal(array(pair.reconstructed), GIVEN["reconstructed"])
