"""One of two ranks of a gloo group: ``dtensor_worker.py RANK RANKS FOLDER``. Hands DTensors to ``step()``.

Each step is of its own kind, see ``STEPS``; writes what this rank has of each array that is sharded or whole.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

sys.path.insert(0, str(Path(__file__).parents[1] / "families"))

from receiver import meet

import vqwatch

STEPS = (
    "sharded by sample", "whole", "codes are addends", "layers are sharded", "a list of both", "loss is an addend",
    "loss is sharded", "norm is an addend", "its full tensor", "norm of the clipping", "features are sharded",
)  # fmt: skip


def given(mesh: DeviceMesh, rank: int) -> dict[str, dict[str, Any]]:
    """Return what each step is given."""
    random = torch.Generator().manual_seed(rank)

    def of(value: Tensor, placement: Any) -> DTensor:
        return DTensor.from_local(value, mesh, [placement], run_check=False)

    codes = torch.randint(0, 16, (2, 5, 4), generator=random)
    same = torch.arange(40).reshape(2, 5, 4) % 16
    x = torch.randn(2, 5, 8, generator=random)
    one = torch.tensor(1.5)
    pair = {"original": of(x, Shard(0)), "reconstructed": of(2 * x, Shard(0))}
    halves = {name: of(value, Shard(2)) for name, value in (("original", x), ("reconstructed", 2 * x))}
    norm, clipped = norms(mesh)
    return {
        "sharded by sample": {"codes": of(codes, Shard(0)), "losses": {"total": of(one, Replicate())}, **pair},
        "whole": {"codes": of(same, Replicate())},
        "codes are addends": {"codes": of(codes, Partial())},
        "layers are sharded": {"codes": of(codes, Shard(2))},
        "a list of both": {"codes": [of(codes[..., 0], Shard(0)), of(codes[..., 1], Partial())]},
        "loss is an addend": {"losses": {"total": of(one, Partial()), "mean": of(one, Partial("avg")), "aux": 0.5}},
        "loss is sharded": {"losses": {"total": of(one.reshape(1), Shard(0)), "aux": 0.5}},
        "norm is an addend": {"grad_norm": norm},
        "its full tensor": {"grad_norm": norm.full_tensor()},
        "norm of the clipping": {"grad_norm": clipped},
        "features are sharded": halves,
    }


def norms(mesh: DeviceMesh) -> tuple[Any, Any]:
    """Return the norm of a sharded gradient, and what clipping the gradients of the model returns: DTensors both."""
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    fully_shard(model, mesh=mesh)
    model(torch.ones(3, 8)).square().sum().backward()
    norm = torch.linalg.vector_norm(model.weight.grad)
    return norm, nn.utils.clip_grad_norm_(model.parameters(), 1.0)


def main() -> None:
    rank, ranks, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    logging.basicConfig(level=logging.WARNING, format="%(name)s %(message)s")
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / "store"), ranks)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    told = given(init_device_mesh("cpu", (ranks,)), rank)
    watch = vqwatch.attach(run="dtensors", budget=float("inf"), every={"reconstruction": 1})
    meet(watch)
    take: Callable[..., None] = watch.step
    for step, name in enumerate(STEPS):
        take(step, **told[name])
    assert watch.flush(20)
    watch.close(20)
    first = told["sharded by sample"]
    np.savez(
        folder / f"{rank}.npz", codes=first["codes"].to_local(), original=first["original"].to_local(),
        whole=told["whole"]["codes"].to_local(), norm=told["its full tensor"]["grad_norm"],
        clipped=told["norm of the clipping"]["grad_norm"].full_tensor(),
    )  # fmt: skip
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
