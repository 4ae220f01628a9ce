"""Normalising and padding on the device, against torchvision's transforms and hand-worked values."""

import pytest
import torch
from torchvision.transforms.v2 import functional as TF

from datasets.batch import Batch, pad_images
from datasets.device import ToDevice
from util.objects import Objects

CPU = torch.device("cpu")
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def bytes_of(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def batch_of(*images: torch.Tensor, objects: tuple[int, ...] = ()) -> Batch:
    padded, mask = pad_images(images)
    boxes = [torch.rand(n, 4) for n in objects or [1] * len(images)]
    truth = [Objects(b, torch.arange(len(b)), i) for i, b in enumerate(boxes)]
    return Batch(padded, mask, truth, [(1, 1)] * len(boxes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_are_normalised_with_the_statistics_of_imagenet(dtype):
    image = bytes_of(5, 7)
    found = ToDevice(CPU, *IMAGENET, dtype)(batch_of(image)).images[0]
    expected = TF.normalize(TF.to_dtype(image, dtype, scale=True), *IMAGENET)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_padding_is_zero_after_normalising_and_masked():
    small, large = bytes_of(4, 6), bytes_of(6, 3, 1)
    batch = ToDevice(CPU, *IMAGENET)(batch_of(small, large), size=(8, 10))
    assert batch.images.shape == (2, 3, 8, 10) and batch.padding_mask.shape == (2, 8, 10)
    for i, (height, width) in enumerate(((4, 6), (6, 3))):
        inside = torch.zeros(8, 10, dtype=torch.bool)
        inside[:height, :width] = True
        assert torch.equal(~batch.padding_mask[i], inside)
        assert (batch.images[i][:, ~inside] == 0).all()
        assert (batch.images[i][:, inside] != 0).all()


def test_padding_more_changes_nothing_inside():
    batch = batch_of(bytes_of(4, 6))
    plain, padded = ToDevice(CPU, *IMAGENET)(batch), ToDevice(CPU, *IMAGENET)(batch, size=(5, 9))
    assert torch.equal(padded.images[..., :4, :6], plain.images)
    assert plain.images.shape == (1, 3, 4, 6)


def test_every_image_keeps_its_objects():
    batch = batch_of(bytes_of(2, 2), bytes_of(2, 2), bytes_of(2, 2), objects=(2, 0, 3))
    for objects, known in zip(batch.objects, ([], [4, 7], [1])):
        objects.exhaustive = torch.tensor(known, dtype=torch.long)
    moved = ToDevice(CPU, *IMAGENET)(batch)
    for before, after in zip(batch.objects, moved.objects):
        assert torch.equal(before.boxes, after.boxes) and torch.equal(before.labels, after.labels)
        assert before.image_id == after.image_id and torch.equal(before.exhaustive, after.exhaustive)
    assert moved.sizes == batch.sizes


def test_a_batch_without_objects_is_for_prediction():
    images, mask = pad_images([bytes_of(3, 3)])
    assert ToDevice(CPU, *IMAGENET)(Batch(images, mask, [], [])).objects == []
