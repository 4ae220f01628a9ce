"""The record of a run is that of the project's own training, and what it says of matching and proposals is right."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import main as project
from datasets.batch import Batch
from datasets.shapes import generate
from models.matcher import HungarianMatcher
from models.predictions import PredictionGroup, Predictions
from scripts.bench import learning, learning_report, learning_run
from scripts.bench.learning_looks import MatchingWatch, covered, proposal_recall
from util.objects import Objects

TINY = ["--model.backbone.name=test_resnet", "--model.backbone.weights=none", "--model.d_model=32"]
TINY += ["--model.num_levels=2", "--model.encoder_layers=1", "--model.decoder_layers=2", "--model.num_queries=6"]
TINY += ["--model.ffn_dim=32", "--model.two_stage=true", "--model.refinement=true", "--model.num_heads=2"]
TINY += ["--data.crop=false", "--data.train_sizes=[48]", "--data.eval_size=48", "--data.max_size=64"]
TINY += ["--data.workers=0", "--train.batch_size=2", "--train.schedule=cosine", "--train.device=cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = generate(tmp_path_factory.mktemp("shapes"), train=5, val=3, size=48)
    return [*TINY, f"--data.root={root}"]


@pytest.fixture
def preset(tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text("train: {output: not/here}\n")
    return ["--config", str(file)]


def test_exactly_so_many_steps(data, preset, tmp_path, monkeypatch):
    factors, file = [], tmp_path / "run.json"
    monkeypatch.setattr(learning_run, "set_lr", lambda optimizer, factor: factors.append(factor))
    options = ["--json", str(file), "--steps", "3", "--log-every", "1", "--every", "1", "--subset", "3"]
    assert learning.main([*preset, *options, "--", *data, "--train.ema_decay=0.5"]) == 0
    record = json.loads(file.read_text())
    assert factors == pytest.approx([1, 0.01 + 0.99 * 0.75, 0.01 + 0.99 * 0.25])  # cos of 0, 60 and 120 degrees
    assert record["name"] == "tiny" and (record["steps"], record["epochs"], record["images"]) == (3, 2, 6)
    assert [log["step"] for log in record["logs"]] == [1, 2, 3]
    assert [(look["step"], look["epoch"]) for look in record["looks"]] == [(2, 1), (3, 2)]
    for log in record["logs"]:
        parts = log["grad_norms"]
        assert set(parts) == {"backbone", "neck", "position", "encoder", "queries", "decoder", "heads"}
        assert math.hypot(*parts.values()) == pytest.approx(log["grad_norm"], rel=1e-4)
        assert log["grad_norm"] > 1  # it is clipped to 0.1
        assert log["losses"]["loss"] == pytest.approx(sum(v for k, v in log["losses"].items() if k != "loss"))
    assert record["final"]["weights"] == "EMA" and 0 <= record["final"]["proposal_recall"] <= 1
    assert record["final"]["errors"]["missed"]["count"] >= 0
    assert record["seconds"] > 0 and record["ms_per_step"] > 0 and record["peak_bytes"] is None
    assert not (tmp_path / "not").exists()


def test_nothing_is_learned_otherwise_than_by_main(data, preset, tmp_path):
    """Dropout would draw other numbers if a look moved the random state."""
    length = ["--train.epochs=2", "--train.log_every=1", "--model.dropout=0.1"]
    assert project.main(["train", *preset, *data, *length, "--train.output", str(tmp_path / "main")]) == 0
    file, folder = tmp_path / "run.json", tmp_path / "bench"
    options = ["--json", str(file), "--log-every", "1", "--subset", "2"]
    assert learning.main([*preset, *options, "--", *data, *length, "--train.output", str(folder)]) == 0
    lines = [json.loads(line) for line in (tmp_path / "main" / "metrics.jsonl").read_text().splitlines()]
    record = json.loads(file.read_text())
    trained = [line for line in lines if line["kind"] == "train"]
    assert [line["loss"] for line in trained] == [log["losses"]["loss"] for log in record["logs"]]
    assert len(trained) == 4 and (folder / "last.pth").is_file()
    scores = [line for line in lines if line["kind"] == "eval"]
    assert [s["AP"] for s in scores] == [look["AP"] for look in record["looks"]]
    ours, theirs = (torch.load(tmp_path / f / "last.pth", weights_only=True)["model"] for f in ("bench", "main"))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_recall_of_proposals():
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.2, 0.2, 0.2, 0.2], [0.8, 0.8, 0.2, 0.2]])
    references = torch.tensor(
        [
            [0.5, 0.5, 0.4, 0.25],  # inside the first, 0.625 of it
            [0.2, 0.2, 0.2, 0.09],  # inside the second, 0.45 of it
            [0.9, 0.9, 0.2, 0.2],  # a quarter of the third: IoU 1/7
        ]
    )
    assert covered(references, boxes).tolist() == [True, False, False]
    two = [objects_of(boxes), objects_of(boxes[:1])]
    assert proposal_recall([references, references[1:]], two) == 0.25
    assert proposal_recall([references[:, :2]] * 2, two) is None  # points cover nothing
    assert proposal_recall([references], [objects_of(boxes[:0])]) is None


def objects_of(boxes):
    return Objects(boxes, torch.zeros(len(boxes), dtype=torch.long), 1)


PLACES = torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.8, 0.2, 0.2, 0.2], [0.5, 0.8, 0.2, 0.2]])
NOWHERE = torch.tensor([0.5, 0.5, 0.9, 0.9])


class Scripted(nn.Module):
    """Answers with given boxes: `answers[look][layer][query]` is the object that a query lies on, or None."""

    def __init__(self, answers, ranked):
        super().__init__()
        self.answers, self.queries = iter(answers), SimpleNamespace(ranked=ranked)

    def forward(self, images, padding_mask):
        layers = next(self.answers)
        boxes = torch.stack([torch.stack([NOWHERE if t is None else PLACES[t] for t in layer]) for layer in layers])
        logits = torch.zeros(*boxes.shape[:2], 2)
        return Predictions([PredictionGroup("decoder", logits[:, None], boxes[:, None], layers=range(len(layers)))])


def instabilities(answers, ranked, objects=2):
    batch = Batch(torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8), [objects_of(PLACES[:objects])], [(8, 8)])
    detector = Scripted(answers, ranked)
    watch = MatchingWatch([batch], HungarianMatcher(), lambda b: b)
    found = [watch.look(detector, torch.device("cpu")) for _ in answers]
    return [(i.between_layers, i.between_looks) for i in found]


def test_instability_is_the_share_of_objects_with_another_query():
    first = [(0, 1, None), (None, 1, 0)]  # object 0 goes from query 0 to query 2
    second = [(0, None, 1), (0, None, 1)]  # at the next look both objects have other queries
    third = [(0, None, 1), (0, 1, None)]
    assert instabilities([first, second, third], ranked=False) == [(0.5, None), (0.0, 1.0), (0.5, 0.5)]
    assert instabilities([first, second, third], ranked=True) == [(0.5, None), (0.0, None), (0.5, None)]
    assert instabilities([first[:1], second[:1]], ranked=False) == [(None, None), (None, 0.5)]  # a single layer


def test_objects_without_a_query_change_nothing():
    answers = [[(0, 1), (1, 0)]]
    assert instabilities(answers, ranked=True, objects=3) == [(pytest.approx(2 / 3), None)]
    assert instabilities(answers, ranked=True, objects=0) == [(None, None)]


def made_up(name, ap, ms, **more):
    errors = {kind: {"count": 1, "ap50_lost": 0.125} for kind in learning_report.TYPES}
    final = {"AP": ap, "AP50": 2 * ap, "AP_small": None, "proposal_recall": None, "errors": errors}
    losses = {"loss": 9.0, "l1/decoder.0": 4.0, "l1/decoder.1": 1.0, "giou/decoder.1": 2.0}
    record = {"name": name, "steps": 10, "ms_per_step": ms, "seconds": 1.0, "final": final, **more}
    looks = [{"step": 5, "AP50": ap}, {"step": 10, "AP50": 2 * ap, "instability": {"between_layers": 0.5}}]
    return {"looks": looks, "logs": [{"step": 10, "losses": losses, "grad_norms": {"neck": 2.0}}], **record}


def test_table_and_picture(tmp_path, capsys):
    runs = [made_up("a", 0.25, 100.0), made_up("b", 0.5, 50.0), made_up("a", 0.5, 300.0)]
    files = [str(tmp_path / f"{i}.json") for i in range(3)]
    for file, run in zip(files, runs):
        (tmp_path / file).write_text(json.dumps(run))
    assert learning.main(["table", *files]) == 0
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    a, b = (next(r for r in rows if r and r[0] == name) for name in "ab")
    assert a[:5] == ["a", "2", "10", "0.375 ± 0.177", "0.750 ± 0.354"] and a[8] == "1.00"
    assert b[:6] == ["b", "1", "10", "0.500", "1.000", "-"] and b[8] == "0.25"
    assert ["a", *["0.125 ± 0.000"] * 6] in rows
    assert learning.main(["plot", *files, "--png", str(tmp_path / "runs.png")]) == 0
    assert (tmp_path / "runs.png").stat().st_size > 10_000
    points = [learning_report.looks(r, "AP50") for r in (runs[0], runs[2])]
    assert learning_report.mean_by_step(points) == [
        (5, 0.375, pytest.approx(0.25 / 2**0.5)),
        (10, 0.75, pytest.approx(0.5 / 2**0.5)),
    ]
    assert learning_report.last_layer_loss(runs[0]) == [(10, 3.0)]
    assert learning_report.looks(runs[0], "instability", "between_layers") == [(5, None), (10, 0.5)]


def test_records_that_are_none(tmp_path, capsys):
    broken, early = tmp_path / "broken.json", tmp_path / "early.json"
    broken.write_text("[]")
    early.write_text(json.dumps({"name": "a", "logs": [], "looks": []}))
    for file, said in ((broken, "no record"), (early, "has not ended"), (tmp_path / "none.json", "cannot be read")):
        assert learning.main(["table", str(file)]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--steps", "0"], "--steps"),
        (["--config", "no.yaml"], "no.yaml"),
        (["--", "--model.d_modle", "3"], "d_model"),
        (["--", "--train.resume", "auto"], "train.resume"),
    ],
)
def test_bad_options_are_one_sentence(preset, capsys, options, said):
    with pytest.raises(SystemExit) as stop:
        learning.main([*preset, "--json", "no.json", *options])
    assert stop.value.code == 2 and said in capsys.readouterr().err.splitlines()[-1]
