"""A receiver at the daemon's end, and a small model that every integration trains."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "families"))

from receiver import Receiver


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    torch.manual_seed(5)
    with Receiver(tmp_path) as receiver:
        yield receiver
