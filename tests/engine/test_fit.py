"""The number of images that fit, against memories that are made up, and against the size rule worked out by hand."""

from types import SimpleNamespace

import pytest
import torch
import yaml

import engine.fit
from datasets.shapes import generate
from engine.fit import (
    available,
    by_memory,
    images_at_once,
    images_that_fit,
    largest_size,
    largest_that_fits,
    peak_of,
    try_step,
)
from main import main
from models.from_config import as_trained
from tests.models.helpers import small_config, small_model
from tests.test_main import SMALL
from util.config import Config, DataConfig
from util.distributed import ALONE
from util.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize("capacity", [0, 1, 2, 3, 5, 7, 8, 11, 16, 99])
@pytest.mark.parametrize("most", [1, 2, 6, 8, 12])
def test_doubling_and_halving_find_the_largest(capacity, most):
    tried = []

    def fits(images: int) -> bool:
        tried.append(images)
        return images <= capacity

    assert largest_that_fits(fits, most) == min(capacity, most)
    assert max(tried) <= most and len(tried) == len(set(tried)) <= 8


@pytest.mark.parametrize(
    ("limit", "found"), [(1000, 8), (700, 6), (699, 5), (299, 1), (100, 1)]  # 200 bytes for one, 100 for each further
)  # fmt: skip
def test_memory_is_extrapolated_from_one_and_two_images(limit, found):
    assert by_memory(lambda images: 100 + 100 * images, 8, limit) == found


def data_set(*sizes, counts=(3,)):
    images = [SimpleNamespace(size=size) for size in sizes]
    return SimpleNamespace(images=images, labels=[[0] * n for n in counts], categories=[SimpleNamespace(label=1)])


@pytest.mark.parametrize(
    ("sizes", "crop", "expected"),
    [
        ([(640, 480)], False, (800, 1067)),
        ([(640, 480), (480, 640)], False, (1067, 1067)),
        ([(2000, 500)], False, (334, 1333)),
        ([(640, 480), None], False, (1333, 1333)),
        ([(640, 480)], True, (1250, 1250)),  # a crop of 384x600, either way
    ],
)
def test_the_largest_padded_size(sizes, crop, expected):
    data = DataConfig(train_sizes=[480, 800], max_size=1333, crop=crop, crop_range=[384, 600])
    assert largest_size(data_set(*sizes), data) == expected


def prepared(**train):
    model = small_model(2, dropout=0.5)
    config = Config(model=small_config(), data=DataConfig(train_sizes=[64], max_size=64, crop=False))
    for name, value in train.items():
        setattr(config.train, name, value)
    return config, model, as_trained(config.loss, config.model, model)[0]


def test_looking_for_the_number_changes_nothing(monkeypatch):
    """A real step of one and of two images, with weights that need more memory than there is."""
    config, model, trained = prepared(ema_decay=0.9)
    before, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    steps = []

    def noted(*arguments):
        steps.append(arguments[-1])
        try_step(*arguments)

    monkeypatch.setattr(engine.fit, "try_step", noted)
    monkeypatch.setattr(engine.fit, "available", lambda: 0)
    assert images_that_fit(config, trained, data_set((64, 64)), CPU, ALONE, 4) == 1
    assert steps == [1, 2]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())
    monkeypatch.setattr(engine.fit, "available", lambda: 2**50)
    assert images_that_fit(config, trained, data_set((64, 64)), CPU, ALONE, 4) == 4


def test_it_is_tried_with_the_objects_of_all_images_that_may_be_in_one():
    config, _, trained = prepared()
    config.data.mosaic, config.data.mixup, counts = 0.1, 0.1, []
    handle = trained.register_forward_pre_hook(lambda _, given: counts.extend(len(o.labels) for o in given[2]))
    try_step(config, trained, data_set((64, 64), counts=(1, 3)), CPU, (64, 64), 2)
    handle.remove()
    assert counts == [3 * (4 + 1)] * 2


def test_all_processes_take_the_smallest_number_and_none_is_refused(monkeypatch):
    config, _, trained = prepared()
    for others, found in (([5, 2, 4], 2), ([3, 0, 4], 0)):
        world = SimpleNamespace(exchange=lambda mine, others=others: [[n] for n in others], local_size=3)
        monkeypatch.setattr(engine.fit, "by_memory", lambda *_: 4)
        if found:
            assert images_that_fit(config, trained, data_set((64, 64)), CPU, world, 4) == found
        else:
            with pytest.raises(UserError, match="not even one image of 64x64 pixels"):
                images_that_fit(config, trained, data_set((64, 64)), CPU, world, 4)
    with pytest.raises(UserError, match="not for 'mps'; give a number"):
        images_that_fit(config, trained, data_set((64, 64)), torch.device("mps"), ALONE, 4)


def test_the_peak_of_a_step_is_seen():
    def step(images: int) -> None:
        torch.ones(images * 200_000_000, dtype=torch.uint8)

    assert 100_000_000 < peak_of(step, 2) - peak_of(step, 1) < 300_000_000 < available()


@pytest.mark.parametrize(("later", "found"), [(0, 4), (200, 3), (1000, 0)])
def test_a_gpu_that_is_made_up_is_tried_until_it_is_full(monkeypatch, later, found):
    """Of 1000 bytes 900 may be used, 200 for each image; above 1000 there is an error, which is caught."""
    peak = [0]

    def step(images: int) -> None:
        peak[0] = 200 * images
        if peak[0] > 1000:
            raise torch.OutOfMemoryError("CUDA out of memory")

    gpu = {
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device: None,
        "mem_get_info": lambda device: (700, 1000),
        "memory_reserved": lambda device: 300,
        "max_memory_reserved": lambda device: peak[0],
    }
    monkeypatch.setattr(engine.fit.gc, "collect", lambda: None)  # seconds, in a process of many tests
    for name, function in gpu.items():
        monkeypatch.setattr(torch.cuda, name, function)
    device = torch.device("cuda")
    assert largest_that_fits(lambda images: engine.fit.fits_gpu(step, images, device, later), 64) == found


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_tried_until_it_is_full():
    device = torch.device("cuda")
    total = torch.cuda.mem_get_info()[0]

    def step(images: int) -> None:
        torch.empty(images * (total // 5), dtype=torch.uint8, device=device)

    assert largest_that_fits(lambda n: engine.fit.fits_gpu(step, n, device, 0), 64) == 4
    assert largest_that_fits(lambda n: engine.fit.fits_gpu(step, n, device, total // 5), 64) == 3


def test_the_command_line_keeps_the_batch_and_the_run_writes_the_number_down(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(engine.fit, "by_memory", lambda peak, most, limit: 3)
    shapes = generate(tmp_path / "shapes", train=5, val=2, size=64)
    (tmp_path / "small.yaml").write_text(SMALL)
    argv = ["train", "--config", str(tmp_path / "small.yaml"), "--data.root", str(shapes), "--train.epochs", "1"]
    argv += ["--train.output", str(tmp_path / "run")]
    assert main([*argv, "--train.batch_size", "auto", "--train.fast_dev_run"]) == 0
    assert "auto: 3 of 4 images fit at once" in capsys.readouterr().out
    kept = yaml.safe_load((tmp_path / "run" / "fast_dev_run" / "config.yaml").read_text())["train"]
    assert (kept["batch_size"], kept["max_images_per_device"]) == (4, 3)


def test_a_resumed_run_keeps_its_number():
    config, _, trained = prepared(max_images_per_device="auto")
    resumed = SimpleNamespace(content={"config": {"train": {"max_images_per_device": 3}}})
    assert images_at_once(config, trained, data_set((64, 64)), CPU, ALONE, 4, resumed) == 3
    config.train.max_images_per_device = None
    assert images_at_once(config, trained, data_set((64, 64)), CPU, ALONE, 4, resumed) is None
