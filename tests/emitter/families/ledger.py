"""What was compared for each family, as a table."""

from __future__ import annotations

from dataclasses import dataclass, field

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


LEDGER = Ledger()
