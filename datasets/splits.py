"""From the `data` section of the configuration to data sets."""

from math import ceil

from datasets.dataset import CocoDetection
from datasets.paths import coco_layout, dataset_paths
from datasets.shapes import generate
from datasets.strong import StrongTransform
from datasets.transforms import eval_transform, train_transform
from util.config import DataConfig, EvalDataConfig
from util.errors import UserError

SHAPES = "data/shapes"  # generated here when no data set is named


def build_dataset(data: DataConfig | EvalDataConfig, split: str, seed: int = 0, epochs: int = 0) -> CocoDetection:
    """The `train` or `val` split with its transform; if no data set is named at all, the generated shapes.

    Args:
        data: the section.
        split: `train` or `val`.
        seed: of the augmentation.
        epochs: of the run, which begins with strong augmentations if there are any; 0 goes without.

    Raises:
        UserError: the other split is named, but not this one; or files are missing or malformed.
    """
    paths = dataset_paths(data, split)
    if paths is None:
        other = "val" if split == "train" else "train"
        if dataset_paths(data, other):
            raise UserError(f"data.{split}_images and data.{split}_annotations are missing; or give data.root for both")
        paths = coco_layout(str(generate(SHAPES)), split)
    if not isinstance(data, DataConfig) or split != "train":
        transform = eval_transform(data.eval_size, data.max_size)
        return CocoDetection.from_file(*paths, transform, getattr(data, "category_ids", "contiguous"), seed)
    for option in ("train_sizes", "crop_sizes"):
        if not getattr(data, option):
            raise UserError(f"data.{option} is empty; it needs at least one size")
    if len(data.crop_range) != 2 or data.crop_range[0] > data.crop_range[1]:
        raise UserError(f"data.crop_range is {data.crop_range}; it must be [smallest, largest]")
    flips_and_colors = (data.horizontal_flip, data.vertical_flip, data.color_jitter)
    transform = train_transform(
        data.train_sizes, data.max_size, data.crop, data.crop_sizes, data.crop_range, *flips_and_colors
    )
    dataset = CocoDetection.from_file(*paths, transform, data.category_ids, seed)
    probabilities = (data.mosaic, data.mixup, data.large_scale_jitter, data.copy_paste)
    if not any(probabilities):
        return dataset
    strong = StrongTransform(transform, data.train_sizes, data.max_size, *flips_and_colors, *probabilities)
    return dataset.strengthened(strong, strong_epochs(data.strong_until, epochs))


def strong_epochs(until: float, epochs: int) -> int:
    """The epochs that begin before this share of all is over, rounded first: 0.07 of 100 is 7, not a little more."""
    return ceil(round(until * epochs, 6))
