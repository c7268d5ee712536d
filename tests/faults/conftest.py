"""One healthy training, from which every fault of the tests goes on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tests.faults import gallery
from tests.faults.catalogue import WARMING
from threadpoolctl import threadpool_limits


@pytest.fixture(scope="session")
def quiet_threads() -> Iterator[None]:
    """Training and daemon share one core here: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def warm(quiet_threads: None) -> gallery.Warm:
    """Seed 0 after its healthy stretch, with the example's own quantizer."""
    return gallery.warm_up(gallery.Setting(), 0, WARMING.lasts)
