"""The image files of data sets are looked at before anything is made of them, by one process of each machine."""

from collections.abc import Mapping

from datasets.checked import agreed, look_at_files, refuse, settle
from datasets.dataset import CocoDetection
from datasets.truth import remarks_on_truth
from util.config import EvalDataConfig
from util.distributed import World
from util.remarks import say_once


def check_files(datasets: Mapping[str, CocoDetection], data: EvalDataConfig, world: World) -> dict[str, CocoDetection]:
    """Look at every image file, say what is odd, and leave out what `data.broken_images` leaves out.

    Every process gets the same images in the same order.

    Args:
        datasets: by split, `train` or `val`.
        data: its `exif` and `broken_images` decide.
        world: the processes.

    Returns:
        The data sets with the images that can be used, whose files, sizes and frames are known.

    Raises:
        UserError: images that cannot be used, of all splits at once.
    """
    mine = None
    if world.local_rank == 0:
        mine = [
            look_at_files(d.image_folder, d.annotations, data.exif, data.broken_images, split)
            for split, d in datasets.items()
        ]
    machines = [found for found in world.all_gather(mine) if found is not None]
    settled = [
        settle(agreed([machine[i] for machine in machines]), dataset.image_folder, data.broken_images, split)
        for i, (split, dataset) in enumerate(datasets.items())
    ]
    refuse(settled)
    for checked in settled:
        for remark in checked.remarks:
            print(remark, flush=True)
    found = {split: dataset.checked(checked.looks) for (split, dataset), checked in zip(datasets.items(), settled)}
    if "val" in found:  # in the frames that were chosen: what would change scores unseen
        for remark in remarks_on_truth(found["val"].annotations):
            say_once(remark)
    return found
