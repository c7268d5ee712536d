"""Runs checks of ``gpu_checks.py`` on the CPU: ``python on_host.py CHECK...``, for machines without a device.

What a device does is all in a few lines of the emitter: events, streams, pinned memory, and where a tensor lies. In a
copy of the package these lines are exchanged for such as the host can do, in order and at once; everything else, which
is what decides and what is sent, is the emitter's own. So this shows the keeping, copying together, sending as bundles
and counting; only a device shows that nothing waits and nothing races: run ``gpu_checks.py`` on one.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

_STANDS_IN = """
class _Event:
    def record(self, stream: object = None) -> None: ...
    def wait(self, stream: object = None) -> None: ...
    def query(self) -> bool:
        return True


class _Stream:
    cuda_stream = 0

"""

EXCHANGES: dict[str, dict[str, str]] = {
    "arrays.py": {'tensor.device.type == "cuda"': 'tensor.device.type == "cpu"'},
    "collect.py": {"found[0].is_cuda": "found[0].is_cpu"},
    "routine.py": {
        "number.is_cuda": "number.is_cpu",
        "array.is_cuda": "array.is_cpu",
    },
    "samples.py": {"value.is_cuda": "value.is_cpu"},
    "ordinary.py": {
        '= getattr(torch._C, "_cuda_isCurrentStreamCapturing", None)': "= lambda: False",
        "number.is_cuda": "number.is_cpu",
    },
    "staging.py": {
        "_NOTHING: Final": _STANDS_IN + "_NOTHING: Final",
        "= torch.cuda.Stream\n": "= lambda device: _Stream()\n",
        "torch.cuda.current_stream(device)": "_Stream()",
        "torch.cuda.current_stream(self._device)": "_Stream()",
        "with torch.cuda.device(device):": "with _NOTHING:",
        "torch.cuda.stream(stream)": "_NOTHING",
        "functools.partial(torch._C._cuda_getCurrentRawStream, device.index)": "lambda: 0",
    },
    "slots.py": {
        "_MOST_LAYOUTS: Final": _STANDS_IN + "_MOST_LAYOUTS: Final",
        "= torch.cuda.Event\n": "= _Event\n",
        'getattr(torch._C._CudaEventBase, "record", torch.cuda.Event.record)': "_Event.record",
        "torch.cuda.stream(side)": "torch.no_grad()",
        ", pin_memory=True": "",
        "torch.as_tensor(_Mapped(host), device=device)": "host",
    },
}


def copy_for_the_host(folder: Path) -> None:
    """Put the package into a folder, without a need for a device. Raises ValueError where it is not as expected."""
    package = folder / "vqwatch"
    shutil.copytree(ROOT / "emitter" / "vqwatch", package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, exchanges in EXCHANGES.items():
        path = package / name
        text = path.read_text()
        for old, new in exchanges.items():
            if old not in text:
                raise ValueError(f"{name} no longer holds {old!r}: say in EXCHANGES what does it now")
            text = text.replace(old, new)
        path.write_text(text)


def run(checks: list[str]) -> int:
    """Run checks by name; each prints what it found, or its traceback. Returns how many failed."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy_for_the_host(Path(folder))
        sys.path[:0] = [folder, str(ROOT / "tests" / "benchmarks")]
        import batch_checks
        import gpu_checks
        import number_checks
        import random_checks
        import torch
        from workload import Size

        torch.set_num_threads(1)
        torch.cuda.synchronize = lambda *_: None
        for checks_of in (gpu_checks, batch_checks, number_checks, random_checks):
            checks_of.CUDA = torch.device("cpu")
        gpu_checks.SIZES["launch-bound"] = Size("host", 1, 16, 2, 8, codes=256)
        assert Path(gpu_checks.vqwatch.__file__).is_relative_to(folder), gpu_checks.vqwatch.__file__
        for check in checks:
            with tempfile.TemporaryDirectory() as endpoint:
                try:
                    print(check, getattr(gpu_checks, check)(gpu_checks.Peer(endpoint)), flush=True)
                except Exception:
                    failed += 1
                    traceback.print_exc()
    return failed


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
