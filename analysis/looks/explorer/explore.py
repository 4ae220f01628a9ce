"""`explorer.html`: where one detector, or two side by side, looked on a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from analysis.looks.explorer.page import describe_picture, explorer_page, readable
from analysis.looks.explorer.side import describe_encoder, describe_side
from analysis.looks.sampling import Recording
from analysis.looks.selection import tokens_at

LIMIT = 5_000_000  # bytes; encoder tokens take what the rest leaves
_KEPT_FREE = 200_000  # for the tokens' indices and references


@dataclass
class Seen:
    """What one detector did on the picture.

    Attributes:
        title: what the detector is called.
        record: its recorded forward pass.
        names: class names by label.
    """

    title: str
    record: Recording
    names: dict[int, str]


def short_name(checkpoint: str) -> str:
    """A checkpoint's file and its folder, which tells runs apart and not where they lie on this machine."""
    return readable("/".join(Path(checkpoint).parts[-2:]))


def write_explorer(
    file: Path,
    picture: Image.Image,
    name: str,
    seen: Sequence[Seen],
    point: tuple[float, float],
    threshold: float,
    first: int,
) -> str:
    """Write the page, and return a sentence about it.

    Args:
        file: where to write.
        picture: the picture, upright, RGB.
        name: of the picture's file.
        seen: what each detector did, one or two.
        point: (x, y) in [0, 1] of the picture, whose encoder tokens are in the page in any case.
        threshold: smallest score of a query whose box is shown at first.
        first: the first detector's query that is shown at first.

    Raises:
        UserError: what was sampled is not finite.
    """
    sides = [describe_side(s.record, picture, s.title, s.names) for s in seen]
    described = describe_picture(picture, name)
    room = (LIMIT - _KEPT_FREE - len(explorer_page(described, sides, threshold, first).encode())) // len(sides)
    for side, record in zip(sides, (s.record for s in seen)):
        always = tokens_at(point, record.spatial_shapes, record.valid_ratios[0])
        side["encoder"] = describe_encoder(record, picture, always, room)
    text = explorer_page(described, sides, threshold, first)
    file.write_text(text, encoding="utf-8")
    kept = [f"{len(e['tokens']):,} of {e['total']:,}" for side in sides if (e := side["encoder"])]
    tokens = f"{' and '.join(kept)} encoder tokens" if kept else "no encoder tokens, for no encoder layer samples"
    return f"{file.name} has {len(text.encode()) / 1e6:.2f} MB, with {tokens}; open it in a browser"
