from dataclasses import dataclass

import pytest

from datasets.dataset import CocoDetection
from engine.check_files import check_files
from tests.datasets.helpers import annotation, write_coco
from tests.datasets.test_checked import cut
from util.config import EvalDataConfig
from util.distributed import ALONE, World
from util.errors import UserError


@dataclass(frozen=True)
class Other(World):
    """A process whose machine is told what another one has found."""

    told: object = None

    def all_gather(self, value):
        return [self.told, value]


@pytest.fixture
def splits(tmp_path) -> dict[str, CocoDetection]:
    objects = [annotation(1, 1, 1, [2, 2, 9, 9]), annotation(2, 3, 2, [3, 3, 9, 9])]
    paths = {split: write_coco(tmp_path, objects, split=split) for split in ("train", "val")}
    return {split: CocoDetection.from_file(*path) for split, path in paths.items()}


def ids(splits) -> dict[str, list]:
    return {split: [image.id for image in dataset.images] for split, dataset in splits.items()}


def test_every_split_is_checked_and_refused_at_once(splits):
    for dataset in splits.values():
        cut(dataset.image_folder / "3.png")
    with pytest.raises(UserError, match=r"train: 1 image of 3.*val: 1 image of 3"):
        check_files(splits, EvalDataConfig(), ALONE)


def test_what_is_left_out_is_said(splits, capsys):
    cut(splits["train"].image_folder / "3.png")
    found = check_files(splits, EvalDataConfig(broken_images="skip"), ALONE)
    assert ids(found) == {"train": [1, 2], "val": [1, 2, 3]}
    assert capsys.readouterr().out == "train: broken and left out: 1 image ('3.png')\n"


def test_a_process_beside_another_on_its_machine_looks_at_nothing_and_agrees(splits, monkeypatch):
    cut(splits["val"].image_folder / "1.png")
    data, told = EvalDataConfig(broken_images="skip"), []
    monkeypatch.setattr(World, "all_gather", lambda self, value: told.append(value) or [value])
    first = check_files(splits, data, World())
    monkeypatch.setattr("engine.check_files.look_at_files", lambda *_: pytest.fail("looked"))
    second = check_files(splits, data, Other(rank=1, size=2, local_rank=1, local_size=2, told=told[0]))
    assert ids(first) == ids(second) == {"train": [1, 2, 3], "val": [2, 3]}
    assert [sample.image.shape for sample in first["val"]] == [sample.image.shape for sample in second["val"]]
