"""Progress bars."""

from collections.abc import Iterable

from tqdm import tqdm

from util.distributed import ALONE, World


def progress(things: Iterable | None, description: str, world: World = ALONE, **options) -> tqdm:
    """A bar over `things`; nothing where nobody looks: not at a terminal, and in processes other than rank 0.

    Args:
        things: to go through; None for a bar that is moved by hand.
        description: left of the bar.
        world: the processes.
        options: of tqdm.
    """
    return tqdm(things, desc=description, disable=None if world.is_main else True, leave=False, **options)
