"""Which evaluation best.pth is of: the figure is the user's choice."""

import json
from pathlib import Path

import pytest
import torch

import engine.train
from datasets.evaluation import Scores
from datasets.shapes import generate
from main import main
from tests.test_main import SMALL

CLASSES = ("circle", "square", "triangle")


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("best")
    shapes = generate(folder / "shapes", train=4, val=3, size=64)
    (folder / "small.yaml").write_text(SMALL)
    return ["train", "--config", str(folder / "small.yaml"), "--data.root", str(shapes)]


@pytest.fixture
def script(monkeypatch):
    """Has evaluations find, one after another, given values of figures; all others are 0."""

    def follow(**values: list[float]) -> None:
        left = {name: iter(listed) for name, listed in values.items()}

        def run_evaluation(*_, **__) -> tuple[Scores, list]:
            given = {name: next(listed) for name, listed in left.items()}
            figures = {name: given.get(name, 0.0) for name in ("AP", "AP50", "AP75")}
            circle = {name: given.get(f"{name}/circle", 0.0) for name in figures}
            return Scores(figures, {"circle": circle | {"objects": 1}}, [list(figures)]), []

        monkeypatch.setattr(engine.train, "run_evaluation", run_evaluation)

    return follow


def best(folder: Path) -> tuple[int, float]:
    """Epochs that best.pth has seen, and the value it is the best for."""
    content = torch.load(folder / "best.pth", weights_only=True)
    assert json.loads(json.dumps(content["best"])) == content["best"]  # a plain number
    return content["epoch"], content["best"]


@pytest.mark.parametrize(
    ("metric", "epoch", "value"), [(None, 3, 0.3), ("AP75", 1, 0.9), ("AP75/circle", 2, 0.5), ("AP50", 1, 0.0)]
)
def test_best_pth_follows_the_figure(options, script, tmp_path, capsys, metric, epoch, value):
    script(**{"AP": [0.1, 0.2, 0.3], "AP75": [0.9, 0.8, 0.7], "AP75/circle": [0.2, 0.5, 0.4]})
    more = ["--train.best_metric", metric] if metric else []
    assert main([*options, "--train.epochs", "3", "--train.output", str(tmp_path / "r"), *more]) == 0
    assert best(tmp_path / "r") == (epoch, value)
    assert torch.load(tmp_path / "r" / "last.pth", weights_only=True)["best"] == value
    printed = capsys.readouterr().out
    assert f"best {metric or 'AP'} {value:.3f}; of the last epoch" in printed
    assert (f"best.pth by {metric}" in printed) == (metric is not None)
    assert ("AP75/circle 0.400" in printed) == (metric == "AP75/circle")  # beside AP and AP50, after every epoch


def test_nothing_to_score_never_wins_over_a_number(options, script, tmp_path):
    script(AP50=[-1.0, 0.0, -1.0])
    argv = ["--train.epochs", "3", "--train.best_metric", "AP50", "--train.output", str(tmp_path)]
    assert main([*options, *argv]) == 0
    assert best(tmp_path) == (2, 0.0)


def test_a_resumed_run_goes_on_with_its_figure(options, script, tmp_path, capsys):
    script(**{"AP50/circle": [0.5, 0.4, 0.3, 0.6]})
    argv = [*options, "--train.best_metric", "AP50/circle", "--train.output", str(tmp_path)]
    assert main([*argv, "--train.epochs", "1"]) == 0
    assert main(["train", "--train.resume", str(tmp_path), "--train.epochs", "3"]) == 0
    assert best(tmp_path) == (1, 0.5)
    assert main(["train", "--train.resume", str(tmp_path), "--train.epochs", "4"]) == 0
    assert best(tmp_path) == (4, 0.6)
    assert "begins anew" not in capsys.readouterr().out


def test_a_resumed_run_follows_the_names_of_its_classes(options, script, tmp_path, capsys):
    script(AP=[0.5, 0.4])
    assert main([*options, "--train.output", str(tmp_path / "r"), "--train.epochs", "1"]) == 0
    file = Path(options[-1]) / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    argv = ["train", "--train.resume", str(tmp_path / "r"), "--train.epochs", "2"]
    argv += ["--data.train_images", str(file.parents[1] / "train2017"), "--data.train_annotations"]
    turned = {1: 3, 2: 2, 3: 1}
    for entries, key in ((content["categories"], "id"), (content["annotations"], "category_id")):
        for entry in entries:
            entry[key] = turned[entry[key]]
    (tmp_path / "turned.json").write_text(json.dumps(content))
    content["categories"][0]["name"] = "disc"
    (tmp_path / "other.json").write_text(json.dumps(content))
    assert main([*argv, str(tmp_path / "other.json")]) == 2
    assert "only the checkpoint has circle; only the data have disc" in capsys.readouterr().err
    assert main([*argv, str(tmp_path / "turned.json")]) == 0
    printed = capsys.readouterr().out
    assert "the classes are in another order than in the checkpoint" in printed and "not matched" not in printed
    names = [c["name"] for c in torch.load(tmp_path / "r" / "last.pth", weights_only=True)["categories"]]
    assert names == ["triangle", "square", "circle"]


@pytest.mark.parametrize("older", [False, True])
def test_with_another_figure_it_begins_anew(options, script, tmp_path, capsys, older):
    script(AP=[0.5, 0.4, 0.1], AP50=[0.9, 0.3, 0.2])
    assert main([*options, "--train.output", str(tmp_path), "--train.epochs", "1"]) == 0
    if older:  # written before there was a choice: it followed AP
        content = torch.load(tmp_path / "last.pth", weights_only=True)
        del content["config"]["train"]["best_metric"]
        torch.save(content, tmp_path / "last.pth")
    argv = ["train", "--train.resume", str(tmp_path), "--train.epochs", "3"]
    if older:
        assert main(argv) == 0
        assert "begins anew" not in capsys.readouterr().out
        assert best(tmp_path) == (1, 0.5)
    else:
        assert main([*argv, "--train.best_metric", "AP50"]) == 0
        assert "best.pth followed AP and now follows AP50, whose best begins anew" in capsys.readouterr().out
        assert best(tmp_path) == (2, 0.3)


def test_a_run_ends_when_its_figure_has_not_risen_for_long_enough(options, script, tmp_path, capsys):
    """The count goes on in a resumed run, and a new best begins it anew."""
    script(AP=[0.5] * 9, AP50=[0.2, 0.1, 0.3, 0.3, 0.2, 0.4, 0.1, 0.1, 0.1])
    argv = [*options, "--train.output", str(tmp_path), "--train.early_stop", "2", "--train.best_metric", "AP50"]
    assert main([*argv, "--train.epochs", "4"]) == 0
    assert torch.load(tmp_path / "last.pth", weights_only=True)["stale"] == 1
    resumed = ["train", "--train.resume", str(tmp_path), "--train.epochs", "9"]
    assert main(resumed) == 0
    printed = capsys.readouterr().out
    assert "it has ended early, after 5 of 9 epochs: AP50 has not risen in 2 evaluations" in printed
    assert "or until AP50 has not risen in 2 evaluations" in printed and best(tmp_path) == (3, 0.3)
    assert main(resumed) == 0
    assert "last.pth': it has ended early, after 5 of 9 epochs" in capsys.readouterr().out
    assert main([*resumed, "--train.early_stop", "3"]) == 0
    assert "ended early, after 9 of 9" not in capsys.readouterr().out
    assert best(tmp_path) == (6, 0.4) and torch.load(tmp_path / "last.pth", weights_only=True)["epoch"] == 9


def test_what_never_can_be_scored_ends_too(options, script, tmp_path):
    script(AP=[-1.0] * 3)
    assert main([*options, "--train.output", str(tmp_path), "--train.early_stop", "2", "--train.epochs", "3"]) == 0
    assert torch.load(tmp_path / "last.pth", weights_only=True)["epoch"] == 2


def test_frozen_parts_stay_to_the_bit_with_their_statistics(options, script, tmp_path, capsys):
    script(AP=[0.1] * 5)  # two for each epoch with an average
    argv = [*options, "--train.epochs", "1", "--model.dropout", "0.5"]
    assert main([*argv, "--train.output", str(tmp_path / "a")]) == 0
    start = ["--model.init_from", str(tmp_path / "a"), "--train.ema_decay", "0.5", "--train.weight_decay", "0.1"]
    frozen = ["--train.freeze", "[backbone,encoder,heads]", "--train.output", str(tmp_path / "b")]
    assert main([*argv, *start, *frozen]) == 0
    assert "kept  backbone, encoder, heads: without gradient" in capsys.readouterr().out
    before, after = (torch.load(tmp_path / n / "last.pth", weights_only=True) for n in "ab")
    for state in (after["model"], after["ema"]):
        changed = {key for key, tensor in before["model"].items() if not torch.equal(state[key], tensor)}
        assert {k.removeprefix("transformer.").split(".")[0] for k in changed} == {
            "neck", "position", "decoder", "queries"
        }  # fmt: skip
    resumed = ["train", "--train.resume", str(tmp_path / "b"), "--train.epochs", "2"]
    assert main([*resumed, "--train.freeze", "[backbone]"]) == 2
    assert "was trained with train.freeze [backbone,encoder,heads]" in capsys.readouterr().err
    assert main(resumed) == 0
    after = torch.load(tmp_path / "b" / "last.pth", weights_only=True)["model"]
    assert all(torch.equal(after[k], t) for k, t in before["model"].items() if k.startswith(("backbone", "heads")))


def test_a_run_with_rates_by_layer_goes_on_with_them(options, script, tmp_path, capsys):
    script(AP=[0.1] * 5)
    rates = ["--train.layer_decay", "0.5", "--train.schedule", "flat_cosine", "--train.flat_share", "0.75"]
    argv = [*options, *rates, "--train.output", str(tmp_path)]
    assert main([*argv, "--train.epochs", "1", "--train.lr_backbone", "0.01"]) == 0
    assert "backbone 0.01 x 0.5 for each layer below its last, offsets" in (out := capsys.readouterr().out)
    assert "flat_cosine from 75% on\n" in out
    resumed = ["train", "--train.resume", str(tmp_path), "--train.epochs", "2"]
    assert main([*resumed, "--train.layer_decay", "null"]) == 2
    assert "was trained with train.layer_decay 0.5, and with or without one" in capsys.readouterr().err
    assert main([*resumed, "--train.layer_decay", "0.25"]) == 0
    groups = torch.load(tmp_path / "last.pth", weights_only=True)["optimizer"]["param_groups"]
    rate_of = {g["name"]: g["base_lr"] for g in groups}
    assert [rate_of[f"backbone.{i}"] for i in (1, 2)] == pytest.approx([0.01 * 0.25, 0.01 * 0.25**2])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("AP_smal", "did you mean 'AP_small'? there are AP, AP50,"),
        ("AP/circel", "did you mean 'AP/circle'? there are AP, AP50,"),
        ("loss", "is 'loss'; there are AP, AP50, AP75, AP_small, AP_medium, AP_large, AR_1, AR_10, AR_100,"),
    ],
)
def test_a_figure_that_does_not_exist_is_refused_before_anything_is_written(options, tmp_path, capsys, name, said):
    assert main([*options, "--train.best_metric", name, "--train.output", str(tmp_path / "r")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: train.best_metric is '{name}'") and said in error and error.count("\n") == 1
    assert ", ".join(CLASSES) in error and not (tmp_path / "r").exists()


def test_the_real_figure_of_a_class(options, tmp_path):
    argv = ["--train.epochs", "2", "--train.best_metric", "AP75/circle", "--train.output", str(tmp_path)]
    assert main([*options, *argv]) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = [line["per_class"]["circle"]["AP75"] for line in lines if line["kind"] == "eval"]
    assert len(found) == 2 and best(tmp_path)[1] == max(found)
