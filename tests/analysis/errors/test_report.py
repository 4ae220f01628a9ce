"""The report as a reader opens it, and the command that writes it."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analysis.errors.analyse import analyse
from analysis.errors.figures import confusion_figure
from datasets.evaluation import Scores
from datasets.image_folder import Pictures
from datasets.shapes import generate
from engine.score import Evaluation
from main import main
from tests.analysis.errors.scenery import found, random_data, read, thing, truth_of

CAT, DOG = 10, 20
A, B, FAR = [0, 0, 50, 50], [200, 200, 50, 50], [300, 20, 40, 40]
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Checks that tags are closed in order, and keeps texts, tags and attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.texts, self.attributes = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, k, v or "") for k, v in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, k, v or "") for k, v in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["script"], ["style"]):
            self.texts.append(data.strip())


def written(output: Path, truth: dict, results: list[dict], folder=None, **options) -> tuple[Page, str, dict]:
    output.mkdir(exist_ok=True)
    subject = {"checkpoint": "x.pth", "data": "truth.json"}
    pictures = Pictures(Path(folder)) if folder else None
    analyse(Evaluation(Scores({}, {}, []), results, read(truth), pictures, subject), output, **options)
    text = (output / "report.html").read_text(encoding="utf-8")
    content = json.loads((output / "analysis.json").read_text(), parse_constant=pytest.fail)
    return Page(text), text, content


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(1, 13):
        Image.new("RGB", (400, 300), (90, 20 * i, 90)).save(folder / f"{i}.png")
    return folder


def outside(page: Page, text: str) -> list[str]:
    """All that a browser would fetch."""
    links = [v for _, k, v in page.attributes if k in ("src", "href", "xlink:href", "srcset", "action")]
    links += re.findall(r"url\(([^)]*)\)|@import ([^;]*)", text)
    return [v for v in links if not str(v).startswith(("#", "data:", "('#", "(' #"))]


def test_the_report_holds_everything_and_fetches_nothing(tmp_path, pictures):
    truth, results = random_data(3)
    page, text, content = written(tmp_path / "out", truth, results, pictures, worst=5)
    assert outside(page, text) == []
    assert "default-src 'none'" in text and page.tags.count("script") == 1
    assert {"x.pth", "truth.json", "12", "Where the detector errs"} <= set(page.texts)
    for name, value in content["figures"].items():
        assert name.replace("_", " ") in page.texts
        assert (f"{value:.3f}" if value != -1 else "-") in page.texts
    for kind, entry in content["errors"]["types"].items():
        assert kind in page.texts and f"{entry['ap50_lost']:.3f}" in page.texts
    assert page.tags.count("svg") == 2
    images = [v for tag, k, v in page.attributes if (tag, k) == ("img", "src")]
    assert len(images) == 5 == len(list((tmp_path / "out" / "worst").glob("*.png")))
    assert all(v.startswith("data:image/jpeg;base64,") for v in images)
    with Image.open(tmp_path / "out" / "worst" / "01.png") as drawn:
        assert drawn.width > 2 * 400 and drawn.height == 300
    for entry in content["worst_images"]:
        assert any(t.endswith(f"{entry['unfound']} not found, {entry['wrong']} wrong") for t in page.texts)


def test_figures_of_the_json_by_hand(tmp_path):
    truth = truth_of([thing(CAT, A), thing(DOG, B)])
    _, _, content = written(tmp_path, truth, [found(DOG, A, 0.95), found(DOG, B, 0.9)], worst=1)
    assert content["subject"] == {
        **{"checkpoint": "x.pth", "data": "truth.json"},
        **{"images": "1", "objects": "2", "classes": "2", "boxes found": "2"},
    }
    assert content["errors"]["types"]["classification"] == {"count": 1, "ap50_lost": pytest.approx(0.75)}
    assert content["confusion"] == {
        "classes": ["cat", "dog", "background"],
        "counts": [[0, 1, 1], [1, 1, 1]],
    }
    cat, dog = content["classes"]
    assert cat["best_f1"] is None and cat["objects"] == 1 and cat["AP50"] == 0
    assert dog["best_f1"] == pytest.approx({"threshold": 0.9, "precision": 0.5, "recall": 1, "f1": 2 / 3})
    assert dog["precision_at_101_recalls"]["AP50"] == [0.5] * 101
    assert dog["errors"]["classification"] == 1
    assert content["by_objects_in_image"][0]["name"] == "2-3"
    assert content["worst_images"] == [
        {"image_id": 1, "file_name": "1.png", "penalty": pytest.approx(1.95), "unfound": 1, "wrong": 1}
    ]


def test_names_from_the_data_are_text_only(tmp_path, pictures):
    evil = "<script>alert('x')</script>"
    names = (evil, '"><img src=x onerror=alert(1)>', "$a_b$ & 日本", "_hidden", "]]>", "--><b>")
    boxes = [[60 * i, 0, 50, 50] for i in range(len(names))]
    truth = truth_of([thing(10 * (i + 1), bbox) for i, bbox in enumerate(boxes)], names=names)
    truth["images"][0]["file_name"] = f"{evil}.png"
    results = [found(10 * (i + 1), bbox, 0.9) for i, bbox in enumerate(boxes[:-1])] + [found(10, FAR, 0.8)]
    results.append(found(20, boxes[0], 0.95))  # taken for another, to list the pair
    page, text, _ = written(tmp_path / "out", truth, results, pictures)
    assert page.tags.count("script") == 1 and "b" not in page.tags[: page.tags.index("figure")]
    assert not any(k.startswith("on") for _, k, _ in page.attributes) and "img" not in page.tags
    assert outside(page, text) == []
    for name in names:
        assert page.texts.count(name) + page.texts.count("\u200b" + name) >= 3, name  # table, matrix, legend
    assert any(f"{evil}.png" in t for t in page.texts)


def test_many_classes_are_a_heat_map_with_the_pairs_most_confused(tmp_path):
    names = tuple(f"class {i}" for i in range(80))
    boxes = [[4 * i, 0, 4, 50] for i in range(60)]  # twenty classes do not occur
    truth = truth_of([thing(10 * (i + 1), bbox) for i, bbox in enumerate(boxes)], names=names)
    results = [found(10 * (i + 1), bbox, 0.9) for i, bbox in enumerate(boxes[1:], 1)] + [found(20, boxes[0], 0.8)]
    page, text, content = written(tmp_path, truth, results)
    assert page.tags.count("svg") == 3 and "matrix" not in [v for _, k, v in page.attributes if k == "class"]
    assert "Most confused" in page.texts and "20 classes without either are left out" in text
    assert len(content["confusion"]["classes"]) == 81 and content["confusion"]["counts"][0] == [0, 1, 1]
    assert outside(page, text) == []


@pytest.mark.parametrize(
    ("annotations", "results"),
    [
        ([], []),
        ([], [found(CAT, A, 0.9)]),
        ([thing(CAT, A)], []),
        ([thing(CAT, A, crowd=1)], [found(CAT, A, 0.9)]),
        ([thing(CAT, A)], [found(CAT, A, 0.9)]),
    ],
)
def test_extremes_are_reported(tmp_path, pictures, annotations, results):
    page, _, content = written(tmp_path / "out", truth_of(annotations, names=("cat",)), results, pictures)
    assert "What costs AP" in page.texts and "nan" not in " ".join(page.texts).lower()
    objects = sum(not a["iscrowd"] for a in annotations)
    assert sum(n for row, _, n in content["confusion"]["counts"] if row == 0) == objects
    assert (content["errors"]["ap50"] is None) == (objects == 0)


def test_without_pictures_the_report_says_so(tmp_path, pictures):
    truth = truth_of([thing(CAT, A)])
    for number, (folder, said) in enumerate([(None, "not known"), (tmp_path / "gone", "gone")]):
        page, _, _ = written(tmp_path / str(number), truth, [], folder)
        (note,) = [t for t in page.texts if t.startswith("Not drawn")]
        assert said in note and "--data.val_images" in note and "img" not in page.tags
    (pictures / "1.png").write_bytes(b"broken")
    page, _, _ = written(tmp_path / "broken", truth, [], pictures)
    assert any(re.match(r"Not drawn: .*1\.png' is not a picture", t) for t in page.texts)
    assert not (tmp_path / "broken" / "worst").exists()


def test_colours_tell_errors_apart(tmp_path, pictures):
    truth = truth_of([thing(CAT, [100, 100, 100, 100])])
    written(tmp_path / "out", truth, [found(CAT, [250, 200, 80, 80], 0.9)], pictures)
    with Image.open(tmp_path / "out" / "worst" / "01.png") as drawn:
        width = (drawn.width - 12) // 2
        assert drawn.getpixel((100, 150)) == (255, 214, 0)  # missed: the left edge in the left picture
        assert drawn.getpixel((width + 12 + 250, 240)) == (214, 35, 35)  # background: in the right one
        assert drawn.getpixel((250, 240)) == drawn.getpixel((390, 290)) == (90, 20, 90)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> tuple[Path, Path]:
    """Data, and a checkpoint of a tiny model."""
    folder = tmp_path_factory.mktemp("command")
    shapes = generate(folder / "shapes", train=4, val=5, size=64)
    options = {
        **{"model.backbone.name": "test_resnet", "model.backbone.weights": "none", "model.backbone.frozen_stages": 0},
        **{"model.backbone.norm": "trainable", "model.d_model": 32, "model.num_levels": 2, "model.num_queries": 20},
        **{"model.num_heads": 4, "model.num_points": 2, "model.encoder_layers": 1, "model.decoder_layers": 1},
        **{"model.ffn_dim": 32, "model.norm_groups": 8, "data.eval_size": 64, "data.max_size": 96, "data.workers": 0},
        **{"data.root": shapes, "train.batch_size": 4, "train.epochs": 1, "train.device": "cpu"},
    }
    argv = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    assert main(["train", *argv, "--train.output", str(folder / "run"), "--data.train_sizes", "[64]"]) == 0
    return shapes, folder / "run" / "best.pth"


def test_the_command_for_a_checkpoint_and_for_its_detections(evaluated, tmp_path, capsys):
    shapes, checkpoint = evaluated
    argv = ["--analyse", "--threshold", "0.01", "--worst", "2"]
    first = ["eval", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "a"), "--data.workers", "0"]
    assert main([*first, *argv]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"classification +\d+ +\d\.\d{3}", printed) and f"{tmp_path / 'a' / 'report.html'}" in printed
    assert len(list((tmp_path / "a" / "worst").iterdir())) == 2
    saved = ["--detections", str(tmp_path / "a" / "detections.json"), "--data.root", str(shapes)]
    assert main(["eval", *saved, "--output", str(tmp_path / "b"), *argv]) == 0
    a, b = (json.loads((tmp_path / d / "analysis.json").read_text()) for d in "ab")
    assert a.pop("subject")["checkpoint"] == str(checkpoint)
    assert b.pop("subject")["saved detections"] == str(tmp_path / "a" / "detections.json")
    assert a == b and a["score_threshold"] == 0.01
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert a["figures"] == results["figures"] and a["errors"]["ap50"] == pytest.approx(results["figures"]["AP50"])
    assert len(list((tmp_path / "b" / "worst").iterdir())) == 2


def test_without_the_option_nothing_is_analysed(evaluated, tmp_path):
    argv = ["--checkpoint", str(evaluated[1]), "--output", str(tmp_path), "--data.workers", "0"]
    assert main(["eval", *argv]) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"detections.json", "results.json"}


def test_detections_with_annotations_alone_have_no_pictures(tmp_path):
    truth = truth_of([thing(CAT, A)])
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps([found(CAT, A, 0.3)]))
    argv = ["--detections", str(tmp_path / "found.json"), "--data.val_annotations", str(tmp_path / "truth.json")]
    assert main(["eval", *argv, "--output", str(tmp_path / "out"), "--analyse"]) == 0
    assert "the folder of the images is not known" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("option", "said"),
    [(["--worst", "-1"], "worst"), (["--threshold", "-0.5"], "threshold"), (["--worst", "many"], "worst")],
)
def test_impossible_options_are_named(capsys, option, said):
    assert main(["eval", "--detections", "x.json", "--analyse", *option]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("part", [{"score": float("nan")}, {"bbox": [0, 0, float("inf"), 5]}])
def test_a_detection_that_is_not_finite_is_left_out(tmp_path, part):
    results = [found(CAT, A, 0.5), found(CAT, A, 0.5) | part]
    _, _, content = written(tmp_path, truth_of([thing(CAT, A)]), results)
    assert content["subject"]["boxes found"] == "1"


def test_a_large_confusion_matrix_names_one_class_in_two():
    names = [f"class {k}" for k in range(201)]
    text = confusion_figure(np.eye(201), names, names)
    assert [text.count(f">class {k}<") for k in (0, 1, 2, 3, 200)] == [2, 0, 2, 0, 2]
