"""Every option of the modern recipe at once, in a run that is interrupted and goes on."""

import signal
from functools import partial
from pathlib import Path

import pytest
import torch

from main import main
from tests.datasets.helpers import add_lists
from tests.processes import Launched
from tests.test_main import small_place
from tests.test_resume import die_while_saving, lines_of
from util.checkpoint import read_newest

# What goes together; of alternatives (such as the content of queries) one.
ALL = {
    "model.two_stage": True,
    "model.query_selection": "mixed",
    "model.proposal_head": "class",
    "model.proposal_nms": 0.7,
    "model.look_forward": 2,
    "model.hybrid_queries": 12,
    "model.query_groups": 2,
    "model.denoising_queries": 8,
    "model.memory_fusion": True,
    "model.relation": True,
    "model.decoder_query_position": "sine",
    "model.query_scale": True,
    "model.decoder_norm": True,
    "loss.classification": "mal",
    "loss.federated": True,
    "loss.proposal_assignment": "atss",
    "loss.hybrid_repeats": 2,
    "data.mosaic": 0.5,
    "data.mixup": 0.5,
    "data.large_scale_jitter": 0.5,
    "data.copy_paste": 0.5,
    "train.checkpoint_activations": True,
}
SAID = (
    "  recipe  mixed, class head, ATSS, NMS 0.7, look forward 2, memory fusion, relation, sine positions, scaled, "
    "decoder norm, groups 2, hybrid 12, denoising 8, class loss mal 1, federated class loss, "
    "mosaic 0.5, mixup 0.5, large scale jitter 0.5, copy paste 0.5 in the first 1 epochs\n"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = small_place(tmp_path_factory.mktemp("all"), train=16, val=2)
    add_lists(folder / "shapes" / "annotations" / "instances_train2017.json")
    return folder


def options(place: Path, output: Path, **more: object) -> list[str]:
    settings = ALL | {"data.root": place / "shapes", "train.output": output, "train.precision": "bf16", **more}
    return ["train", "--config", str(place / "small.yaml"), *(f"--{k}={v}" for k, v in settings.items())]


def assert_same(folder: Path, whole: Path) -> None:
    """Weights, to the bit, and every line of the log."""
    found, exact = (torch.load(f / "last.pth", weights_only=True)["model"] for f in (folder, whole))
    assert found.keys() == exact.keys()
    assert not [key for key, tensor in exact.items() if not torch.equal(found[key], tensor)]
    assert lines_of(folder) == lines_of(whole)


def test_a_run_with_every_option_goes_on_to_the_bit(place, tmp_path, capsys):
    """From between the strong epoch and the ordinary one."""
    more = {"train.batch_size": 8, "model.decoder_layers": 2}
    assert main(options(place, tmp_path / "whole", **more)) == 0
    assert SAID in capsys.readouterr().out
    first = tmp_path / "whole" / "last.1.pth"
    before = torch.load(first, weights_only=True)
    assert before["epoch"] == 1
    assert main(options(place, tmp_path / "again", **more, **{"train.resume": first})) == 0
    found, exact = (torch.load(tmp_path / f / "last.pth", weights_only=True)["model"] for f in ("again", "whole"))
    assert not [key for key, tensor in exact.items() if not torch.equal(found[key], tensor)]
    changed = {key for key, tensor in exact.items() if not torch.equal(before["model"][key], tensor)}
    assert {"heads.1.classify.weight", "queries.content", "training_queries.hybrid.content"} <= changed


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 6], ids=["in the strong epoch", "in the ordinary epoch"])
def test_a_killed_run_with_every_option_goes_on_to_the_bit(place, tmp_path, count):
    """With workers and dropout, in the middle of an epoch of 4 steps."""
    more = {"data.workers": 2, "model.dropout": 0.1, "train.ema_decay": 0.9}
    more |= {"train.save_every": 1, "train.log_every": 1}
    launched = Launched(options(place, tmp_path / "whole", **more), tmp_path / "whole.log")
    assert launched.wait() == [0], launched.printed()
    argv = options(place, tmp_path / "run", **more, **{"train.resume": "auto"})
    die = partial(die_while_saving, "renamed", count)
    assert Launched(argv, tmp_path / "log", prepare=die).wait() == [-signal.SIGKILL]
    assert read_newest(tmp_path / "run") is not None
    launched = Launched(argv, tmp_path / "log")
    assert launched.wait() == [0], launched.printed()
    assert_same(tmp_path / "run", tmp_path / "whole")
