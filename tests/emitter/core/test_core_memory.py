"""No memory for what comes from a device: nothing is raised, it is said once and counted, and the rest is sent.

The tensors are torch's fake ones, which say that they are on a CUDA device; the allocations are real, and on a build
without CUDA they fail for real.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.emitter.core.hand import Peer, array, settle
from torch._subclasses.fake_tensor import FakeTensorMode

import vqwatch
from vqwatch.slots import Slot
from vqwatch.staging import Staging

Attach = Callable[..., vqwatch.Emitter]

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="with a CUDA device the allocations succeed")


class BareSlot(Slot):
    """A slot without the events that only a device has."""

    def __init__(self, staging: Staging) -> None:
        self._staging = staging
        self.mapped = True
        self.capacity = self.users = 0
        self._loans = []
        self._layouts = {}


class BareStaging(Staging):
    """The staging of a device that is there: what it needs next is pinned memory."""

    def __init__(self) -> None:
        self.device_bytes = self.pinned_bytes = 0
        self._device = torch.device("cuda")
        self._most_bytes = 1 << 20
        self._can_map = False
        self._small: list[Slot] = [BareSlot(self), BareSlot(self)]
        self._large: list[Slot] = [BareSlot(self)]


def told() -> dict[str, Any]:
    """Return a step of which the codes and a loss are on a device, and the rest is not."""
    with FakeTensorMode():
        loss, codes = torch.empty((), device="cuda"), torch.zeros(2, 5, 2, dtype=torch.long, device="cuda")
    x = np.arange(80.0, dtype=np.float32).reshape(2, 5, 8)
    return {"losses": {"total": loss, "aux": 1.5}, "codes": codes, "original": x, "reconstructed": x, "lr": 0.1}


@pytest.mark.parametrize(
    ("staging", "reason"), [(BareStaging, "memory"), (lambda: None, "RuntimeError")], ids=["pinned", "all of it"]
)
def test_without_memory_what_is_on_the_host_is_sent_and_the_rest_is_counted(
    attached: Attach, peer: Peer, caplog: pytest.LogCaptureFixture, staging: Callable[[], Any], reason: str
) -> None:
    watch = attached(every={"reconstruction": 1})
    watch._capture._staging = staging()
    with caplog.at_level(logging.WARNING, "vqwatch"):
        for step in range(3):
            watch.step(step, **told())
    settle(watch, peer)
    assert [(m.step, m.losses, m.learning_rates) for m in peer.of("step")] == [
        (step, {"aux": 1.5}, {"0": 0.1}) for step in range(3)
    ]
    assert [array(message.original)[1, 4, 7] for message in peer.of("reconstruction")] == [79.0] * 3
    assert peer.of("codes") == []
    assert watch.dropped == {f"codes:{reason}": 3, f"scalars:{reason}": 3}
    assert len(caplog.records) == 2
    assert watch.pinned_bytes == watch.staged_bytes == 0
