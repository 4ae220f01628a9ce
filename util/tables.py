"""Tables in plain text."""

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Aligned plain text: the first column to the left, all others to the right."""
    cells = [[str(c) for c in header], *([_cell(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))) for row in cells
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "-" if value == -1 else f"{value:.3f}"
    return str(value)


def score_tables(figures: dict[str, float], per_class: dict[str, dict[str, float]]) -> str:
    """The COCO figures and the AP of every class, to print."""
    rows = [[name, *(v[k] for k in ("AP", "AP50", "AP75", "objects"))] for name, v in per_class.items()]
    coco = "\n".join(table(names, [[figures[n] for n in names]]) for names in (list(figures)[:6], list(figures)[6:]))
    return f"{coco}\n\n" + table(["class", "AP", "AP50", "AP75", "objects"], rows)
