"""Progress bars."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from util.distributed import World


def progress(things: Iterable | None, description: str, world: "World | None" = None, **options) -> tqdm:
    """A bar over `things`; nothing where nobody looks: not at a terminal, and in processes other than rank 0.

    Args:
        things: to go through; None for a bar that is moved by hand.
        description: left of the bar.
        world: the processes; None for a single one.
        options: options of tqdm.
    """
    hidden = True if world is not None and not world.is_main else None  # None: tqdm looks whether it is a terminal
    return tqdm(things, desc=description, disable=hidden, leave=False, **options)
