"""What a data set holds and what is wrong with it, as a page to read and as plain data."""

from dataclasses import asdict, dataclass, field

from datasets.findings import Change, Defect, listing
from datasets.values import as_text


@dataclass
class DataReport:
    """What a data set holds.

    Attributes:
        annotation_file, image_folder: the data set.
        images, annotations, crowds, without_objects: counts.
        objects_of_class: number of objects by class name.
        image_sizes: 10 most frequent `WxH` with their number.
        box_sizes: objects that COCO calls small (< 32^2 pixels), medium, and large (>= 96^2).
        objects_per_image: smallest, median and largest number.
        defects: everything wrong.
        annotated: whether the file says which objects there are; it may list images alone.
        mended_file: where a mended copy was written, if it was.
        changes: what is different in it.
        left: what is still wrong in it.
    """

    annotation_file: str
    image_folder: str
    images: int = 0
    annotations: int = 0
    crowds: int = 0
    without_objects: int = 0
    objects_of_class: dict[str, int] = field(default_factory=dict)
    image_sizes: dict[str, int] = field(default_factory=dict)
    box_sizes: dict[str, int] = field(default_factory=dict)
    objects_per_image: tuple[int, float, int] = (0, 0.0, 0)
    defects: list[Defect] = field(default_factory=list)
    annotated: bool = True
    mended_file: str | None = None
    changes: list[Change] = field(default_factory=list)
    left: list[Defect] = field(default_factory=list)

    @property
    def remaining(self) -> list[Defect]:
        """What is wrong with the mended copy, if there is one; else with the file."""
        return self.left if self.mended_file else self.defects

    def to_dict(self) -> dict:
        """Plain dictionaries, for JSON."""
        return asdict(self)

    def text(self, show: int = 20) -> str:
        """A page to read; of each kind of defect at most `show`."""
        low, median, high = self.objects_per_image
        lines = [
            f"{self.annotation_file}",
            f"  images        {self.images} ({self.without_objects} without objects)",
            f"  annotations   {self.annotations} ({self.crowds} crowds)"
            if self.annotated
            else "  annotations   not known: the file has no list 'annotations'",
            f"  per image     {low} to {high} objects, median {median:g}",
            "  image sizes   " + ", ".join(f"{size} ({n})" for size, n in self.image_sizes.items()),
            "  box sizes     " + ", ".join(f"{name} {n}" for name, n in self.box_sizes.items()),
            f"  classes       {len(self.objects_of_class)}",
        ]
        width = max((len(name) for name in self.objects_of_class), default=0)
        lines += [f"    {name:<{width}}  {n}" for name, n in self.objects_of_class.items()]
        lines += [f"  defects       {len(self.defects)}", *listing(self.defects, show)]
        if self.mended_file:
            lines += [f"  mended copy   {self.mended_file}", f"  changes       {len(self.changes)}"]
            lines += listing(self.changes, show)
            lines += [f"  left          {len(self.left)}", *listing(self.left, show)]
        return as_text("\n".join(lines))
