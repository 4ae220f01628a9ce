"""Something to say about an entry of a data set, and a page of such sayings."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass
class Finding:
    """Its kind, the image file and annotation id (where there is one), and the particulars."""

    kind: str
    file: str | None
    annotation: Any
    detail: str

    def __str__(self) -> str:
        where = [f"image {self.file}"] if self.file else []
        where += [f"annotation {self.annotation}"] if self.annotation is not None else []
        return f"{', '.join(where) or 'file'}: {self.detail}"


class Defect(Finding):
    """Something wrong."""


class Change(Finding):
    """Something that was changed."""


def listing(findings: Sequence[Finding], show: int) -> list[str]:
    """Indented lines: each kind with its count, and below it at most `show` of its findings."""
    by_kind = defaultdict(list)
    for finding in findings:
        by_kind[finding.kind].append(finding)
    lines = []
    for kind, some in by_kind.items():
        lines.append(f"    {kind} ({len(some)})")
        lines += [f"      {finding}" for finding in some[:show]]
        if len(some) > show:
            lines.append(f"      ... and {len(some) - show} more")
    return lines
