"""The figures of a model's cost, and the tables that show them."""

from dataclasses import dataclass, field
from statistics import median

from util.measuring import MIB
from util.tables import table

CONVENTION = (
    "Operations are those of one forward pass for one image, a multiplication and an addition counted as two (GFLOPs); "
    "papers on detectors count such a pair once, and call GMACs GFLOPs. Convolutions, matrix products, attention and "
    "bilinear sampling are counted; norms, activations, softmax, masks and resizing are not."
)


@dataclass
class PartCost:
    """A part of the model.

    Attributes:
        name: name of the part.
        trainable, frozen: numbers of parameters.
        flops: operations for one image at the first size that was counted; None before.
    """

    name: str
    trainable: int = 0
    frozen: int = 0
    flops: float | None = None


@dataclass
class SizeCost:
    """The model at one image size.

    Attributes:
        height, width: size of the images in pixels.
        batch_size: images at once.
        flops: operations for one image; None if they were not counted.
        seconds: seconds for one batch, an entry for each repeat.
        peak_bytes: most memory of tensors at any moment, weights and images included.
        failure: why there are no figures, or "".
    """

    height: int
    width: int
    batch_size: int
    flops: float | None = None
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    failure: str = ""

    @property
    def latency(self) -> float | None:
        """Median seconds of one batch."""
        return median(self.seconds) if self.seconds else None

    @property
    def images_per_second(self) -> float | None:
        """At the median."""
        return self.batch_size / self.latency if self.latency else None


@dataclass
class Profile:
    """All figures; `str()` makes them text.

    Attributes:
        parts: figures by part.
        sizes: figures by image size.
        machine: the machine, and how it was measured.
    """

    parts: list[PartCost]
    sizes: list[SizeCost]
    machine: str

    def __str__(self) -> str:
        counted = next((s for s in self.sizes if s.flops is not None), None)
        share = f"GFLOPs at {counted.height}x{counted.width}" if counted else "GFLOPs"
        totals = PartCost("all", *(sum(getattr(p, k) for p in self.parts) for k in ("trainable", "frozen")))
        totals.flops = counted.flops if counted else None
        rows = [[p.name, f"{p.trainable:,}", f"{p.frozen:,}", _figure(p.flops, 1e-9)] for p in [*self.parts, totals]]
        lines = [self.machine, "", table(["part", "trainable", "frozen", share], rows), ""]
        rows = []
        for s in self.sizes:
            cells = [_figure(s.flops, 1e-9), _figure(s.flops, 0.5e-9), s.failure or _figure(s.latency, 1e3)]
            cells += [_figure(s.images_per_second), _figure(s.peak_bytes, 1 / MIB, 0)]
            rows.append([f"{s.batch_size} x {s.height}x{s.width}", *cells])
        header = ["images", "GFLOPs/image", "GMACs/image", "latency ms", "images/s", "peak MiB"]
        return "\n".join([*lines, table(header, rows), "", CONVENTION])


def _figure(number: float | None, factor: float = 1.0, digits: int = 1) -> str:
    return "-" if number is None else f"{number * factor:,.{digits}f}"
