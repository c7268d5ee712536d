"""What was compared for each family, as a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import metadata

COLUMNS = ("codes", "codebook", "averages", "residuals")


@dataclass
class Row:
    """One family: its version, how many layers were found, and how many tensors of each column were equal."""

    version: str
    layers: int
    kind: str
    equal: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COLUMNS, 0))


class Ledger:
    """Filled by the tests as comparisons succeed; a column that was never compared shows a dash."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def table(self) -> list[str]:
        head = ("family", "version", "layers", "kind", *COLUMNS)
        body = [
            (
                name,
                row.version,
                str(row.layers),
                row.kind,
                *(str(row.equal[c]) if row.equal[c] else "-" for c in COLUMNS),
            )
            for name, row in self.rows.items()
        ]
        widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
        return [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in [head, *body]
        ]

    def page(self) -> str:
        """Return the table as a page for readers."""
        head = ("family", "version", "layers found", "kind", "codes", "codebook", "EMA", "residuals")
        lines = [
            (name, row.version, str(row.layers), row.kind, *(str(row.equal[c] or "-") for c in COLUMNS))
            for name, row in self.rows.items()
        ]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ("---",) * len(head), *lines])
        return PAGE.format(command=COMMAND, torch=metadata.version("torch"), table=table)


COMMAND = "python -m pytest tests/emitter/families/test_families_arrive.py --write-families"

PAGE = """# Quantizer families

What arrived at the daemon's side of the wire, compared with what each library itself says it did. A number counts the
comparisons that held in that row's training on the CPU: codes, codebooks and EMA cluster sizes exactly, residual
energies to 1e-5 (float32 sums). "-" means that the family has no such thing, or offers no account of its own to compare
with. "stand-in" is a small module of the same shape, written for the test, where PyPI has no such package.

Written with torch {torch} by the following; a run in which anything differs leaves this page as it was.

    {command}

{table}
"""

LEDGER = Ledger()
