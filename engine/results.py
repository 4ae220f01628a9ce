"""What a predictor returns for a picture: detections that know their classes' names and how to show themselves."""

from collections.abc import Mapping
from dataclasses import dataclass

from models.postprocess import Detections

SHOWN = 10  # detections in full, where one looks at them in a notebook or a terminal


@dataclass(repr=False)
class NamedDetections(Detections):
    """Detections of one picture, best first; `len()` counts them.

    Attributes:
        boxes: `[N, 4]`, xyxy in pixels of the upright picture.
        scores: `[N]`, in [0, 1].
        labels: `[N]`, class indices.
        names: the class name of each; the index itself for a class without one.
    """

    names: list[str]

    @classmethod
    def of(cls, found: Detections, names: Mapping[int, str]) -> "NamedDetections":
        """Detections with the names of their classes, given by label."""
        return cls(found.boxes, found.scores, found.labels, [names.get(k, str(k)) for k in found.labels.tolist()])

    def above(self, threshold: float) -> "NamedDetections":
        """Those whose score is at least `threshold`."""
        names = [name for name, score in zip(self.names, self.scores.tolist()) if score >= threshold]
        kept = super().above(threshold)
        return NamedDetections(kept.boxes, kept.scores, kept.labels, names)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        rows = zip(self.names[:SHOWN], self.scores.tolist(), self.boxes.tolist())
        lines = [f"  {score:.2f} {name} at ({', '.join(f'{v:.1f}' for v in box)})" for name, score, box in rows]
        more = [f"  and {len(self) - SHOWN} more"] if len(self) > SHOWN else []
        title = f"{len(self)} detection{'' if len(self) == 1 else 's'}" + (
            ", (x0, y0, x1, y1) in pixels:" if self else ""
        )
        return "\n".join([title, *lines, *more])
