"""Samples of annotated images: pictures read, objects beside them, both transformed."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as TF

from datasets.annotations import Annotations
from datasets.boxes import clip_boxes
from datasets.by_image import ByImage
from datasets.categories import categories_of
from datasets.checked import REMEDY, keep
from datasets.exhaustive import KEY, exhaustive_labels
from datasets.ids import check_listed
from datasets.image_folder import Pictures
from datasets.inspection import Look
from datasets.picture_file import BrokenImage
from datasets.readers import read_annotations
from datasets.strong import StrongTransform
from datasets.transforms import View, target_on
from datasets.truth import sizes_of_objects
from util.errors import UserError
from util.objects import Objects


@dataclass
class Sample:
    """One image and its objects.

    Attributes:
        image: `[3, H, W]`, uint8.
        objects: the objects of the image.
        original_size: (height, width) in pixels of the file.
    """

    image: torch.Tensor
    objects: Objects
    original_size: tuple[int, int]


class CocoDetection(Dataset):
    """Samples of annotated images; `from_file` and `from_annotations` make it.

    Crowds and degenerate boxes are left out of the samples; images without objects stay in.

    Attributes:
        annotations: the content of the annotation file.
        categories: classes in label order.
        images: the images that the annotation file lists, in its order.
        boxes: boxes of each image, `[T, 4]`, float32, xyxy in pixels of the file.
        labels: labels of each image, `[T]`, int64.
        exhaustive: labels of each image's classes of which every object is listed, `[V]`; None if nobody asks.
        dropped: number of degenerate boxes that were left out.
        image_folder: where the pictures are; `pictures` reads them.
        strong, strong_epochs: the transform of the first epochs, instead of `transform`, and their number.
    """

    def __init__(
        self,
        image_folder: str | Path,
        annotations: Annotations,
        transform: Callable | None,
        category_ids: str,
        seed: int,
    ):
        self.image_folder = _existing(image_folder)
        self.pictures = Pictures(self.image_folder)
        self.annotations, self.images = annotations, annotations.images
        self.transform, self.seed = transform, seed
        self.strong: StrongTransform | None = None
        self.strong_epochs = 0
        self.categories = categories_of(annotations.categories, category_ids)
        if not self.images:
            raise UserError(f"'{annotations.source}' lists no images")
        self.boxes, self.labels, self.dropped = self._by_image()
        self.exhaustive: ByImage | None = None

    @classmethod
    def from_file(
        cls,
        image_folder: str | Path,
        annotation_file: str | Path,
        transform: Callable | None = None,
        category_ids: str = "contiguous",
        seed: int = 0,
    ) -> "CocoDetection":
        """A data set from a file in any format of `datasets.readers`; the other arguments as of `from_annotations`.

        Raises:
            UserError: files missing or malformed.
        """
        folder = _existing(image_folder)  # it is looked for before a large file is read
        return cls.from_annotations(folder, read_annotations(annotation_file, folder), transform, category_ids, seed)

    @classmethod
    def from_annotations(
        cls,
        image_folder: str | Path,
        annotations: Annotations,
        transform: Callable | None = None,
        category_ids: str = "contiguous",
        seed: int = 0,
    ) -> "CocoDetection":
        """A data set from annotations that were read.

        Args:
            image_folder: folder in which the file names of the annotations are found.
            annotations: classes, images and objects.
            transform: `(tv_tensors.Image, {"boxes", "labels"}) -> (tensor, {...})`.
            category_ids: `contiguous` labels 0..C-1 in the order of ids, or the file's `original` ids as labels.
            seed: with epoch and index it determines the augmentation of a sample.

        Raises:
            UserError: no such folder, no images, or an object of an image or class that is not listed.
        """
        return cls(image_folder, annotations, transform, category_ids, seed)

    def checked(self, looks: Sequence[Look]) -> "CocoDetection":
        """This data set with what an inspection has found: the images that are used, their files, sizes and frames."""
        dataset = copy(self)
        dataset.annotations = keep(self.annotations, looks)
        dataset.pictures = Pictures(self.image_folder, looks=looks)
        if dataset.annotations.images != self.images:  # other sizes, or fewer images
            dataset.images = dataset.annotations.images
            dataset.boxes, dataset.labels, dataset.dropped = dataset._by_image()
            if self.exhaustive is not None:
                return dataset.with_exhaustive()
        return dataset

    def with_exhaustive(self) -> "CocoDetection":
        """This data set with samples that say of which classes every object is listed (`datasets.exhaustive`).

        Raises:
            UserError: the file does not say it.
        """
        dataset = copy(self)
        dataset.exhaustive = exhaustive_labels(self.annotations, self._labels_of_classes())
        return dataset

    def transformed(self, transform: Callable | None) -> "CocoDetection":
        """This data set with another transform in all epochs."""
        dataset = copy(self)
        dataset.transform, dataset.strong = transform, None
        return dataset

    def strengthened(self, strong: StrongTransform, epochs: int) -> "CocoDetection":
        """This data set with strong augmentations in the epochs before `epochs`."""
        dataset = copy(self)
        dataset.strong, dataset.strong_epochs = strong, epochs
        return dataset

    def _labels_of_classes(self) -> np.ndarray:
        """`[C]`, the label of each class of the file, in its order."""
        label_of = {c.id: c.label for c in self.categories}
        return np.array([label_of[c.id] for c in self.annotations.categories], dtype=np.int64)

    def _by_image(self) -> tuple[ByImage, ByImage, int]:
        read, labels = self.annotations, self._labels_of_classes()
        check_listed(read)
        boxes, possible = clip_boxes(read.boxes, sizes_of_objects(read))
        kept = np.flatnonzero(possible & ~read.crowds)
        kept = kept[np.argsort(read.image_at[kept], kind="stable")]
        positions, count = read.image_at[kept], len(self.images)
        dropped = int((~possible & ~read.crowds).sum())
        return ByImage(boxes[kept], positions, count), ByImage(labels[read.class_at[kept]], positions, count), dropped

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int] | int) -> Sample:
        """The sample of `(index, epoch)`; a plain index is epoch 0."""
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        image, target = self._read(index)
        size = (image.shape[-2], image.shape[-1])
        seed = int(np.random.SeedSequence([self.seed, epoch, index]).generate_state(1)[0])
        if self.transform is not None:
            # The same image in the same epoch is augmented alike, whichever worker does it.
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed GPUs too
                if self.strong is not None and epoch < self.strong_epochs:
                    image, target = self.strong((image, target), self._partner)
                else:
                    image, target = self.transform(image, target)
        height, width = image.shape[-2:]
        boxes = TF.convert_bounding_box_format(target["boxes"], new_format="CXCYWH").as_subclass(torch.Tensor)
        boxes = boxes.float() / torch.tensor([width, height, width, height])
        objects = Objects(boxes, target["labels"], self.images[index].id, seed, target.get(KEY))
        return Sample(image.as_subclass(torch.Tensor), objects, size)

    def _partner(self) -> View:
        """Any image, drawn from torch's random state, which the sample's key has seeded; perhaps the same again."""
        return self._read(int(torch.randint(len(self), ())))

    def _read(self, index: int) -> View:
        """An image as it is, and its objects."""
        entry = self.images[index]
        try:
            picture = self.pictures.read(entry)
        except BrokenImage as error:
            raise BrokenImage(f"{error}; {REMEDY}") from None
        if entry.size is not None and picture.size != entry.size:
            raise UserError(
                f"image '{entry.file_name}' is {picture.width}x{picture.height} pixels, but "
                f"'{self.annotations.source}' says {entry.width}x{entry.height}; check-data lists all such images"
            )
        corners, labels = self.boxes[index], self.labels[index]
        if entry.size is None:  # only now it is known what lies outside
            corners = np.minimum(corners, np.array(picture.size * 2, dtype=np.float32))
            kept = (corners[:, 2:] > corners[:, :2]).all(1)
            corners, labels = corners[kept], labels[kept]
        size = (picture.height, picture.width)
        target = target_on(size, torch.from_numpy(corners), torch.from_numpy(labels))
        if self.exhaustive is not None:
            target[KEY] = torch.from_numpy(self.exhaustive[index]).long()
        return TF.to_image(picture), target


def _existing(image_folder: str | Path) -> Path:
    if not Path(image_folder).is_dir():
        raise UserError(f"no image folder '{image_folder}'; check data.root or data.*_images")
    return Path(image_folder)
