"""Fuzz one way in with atheris: ``python -m tests.fuzz.run wire -runs=10000000``.

Everything after the target's name goes to libFuzzer. The corpus is kept in ``.fuzz/TARGET``; an input that breaks
something is written to ``.fuzz/TARGET-crash-*`` and belongs into ``tests/fuzz/crashes/TARGET`` with the fix.
"""

from __future__ import annotations

import sys
from pathlib import Path

NAMES = ("wire", "rules", "http")


def main() -> None:
    """Fuzz until libFuzzer's options say stop."""
    import atheris  # a tool of `make fuzz` alone

    name, *options = sys.argv[1:] or [""]
    if name not in NAMES:
        sys.exit(f"python -m tests.fuzz.run {'|'.join(NAMES)} [libFuzzer options]")
    with atheris.instrument_imports(include=["vqwatch", "vqwatch_rules", "vqwatch_daemon"]):
        from tests.fuzz import seeds
        from tests.fuzz.targets import TARGETS
    corpus = Path(".fuzz") / name
    seeds.write(corpus, getattr(seeds, name)())
    atheris.Setup([sys.argv[0], str(corpus), f"-artifact_prefix=.fuzz/{name}-", *options], TARGETS[name]())
    atheris.Fuzz()


if __name__ == "__main__":
    main()
