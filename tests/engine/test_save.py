"""Files of predictions: no two of one name, none that an option asks for in vain, none lost for another's sake."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from engine.predict_pictures import predict_pictures
from engine.predictor import Predictor
from engine.save import save_predictions
from main import main
from models.postprocess import Detections
from util.command_config import PredictConfig
from util.errors import UserError
from util.files import unused_name
from util.tables import table


class Stub(Predictor):
    """Finds one box in every picture, and takes none below 10 pixels."""

    def __init__(self):
        super().__init__(torch.nn.Identity(), lambda p: p.convert("RGB"), None, None, {0: "a"})

    def _detect(self, several, threshold, top_k):
        if min(several[0].size) < 10:
            raise UserError("an image is too small")
        return [Detections(torch.tensor([[1.0, 1, 5, 5]]), torch.tensor([0.9]), torch.tensor([0]))]


def pictures(folder: Path, *sizes: tuple[str, int]) -> list[Path]:
    (folder / "out").mkdir()
    for name, size in sizes:
        Image.new("RGB", (size, size)).save(folder / name)
    return [folder / name for name, _ in sizes]


def test_names_that_one_file_system_takes_for_one_are_two():
    used: set[str] = set()
    assert [unused_name(n, used) for n in ("a", "A", "a", "Straße", "STRASSE")] == [
        "a",
        "A_2",
        "a_3",
        "Straße",
        "STRASSE_2",
    ]


def test_the_list_of_classes_overwrites_no_label_file(tmp_path):
    options = PredictConfig(save_txt=True)
    paths = pictures(tmp_path, ("Classes.png", 20), ("b.png", 20))
    listed = predict_pictures(Stub(), paths, tmp_path / "out", 0.0, 5)
    save_predictions(options, listed, 2, Stub(), tmp_path / "out")
    written = {f.name: f.read_text() for f in (tmp_path / "out" / "labels").iterdir()}
    assert written == {"Classes_2.txt": written["b.txt"], "b.txt": written["b.txt"], "classes.txt": "a\n"}


def test_a_class_is_a_line_whatever_its_name(tmp_path):
    """Readers of YOLO number classes by lines, and refuse empty ones."""
    predictor = Stub()
    predictor.names = {0: "two\nlines", 1: "two lines", 2: " ", 4: "e"}
    save_predictions(PredictConfig(save_txt=True), [], 0, predictor, tmp_path)
    written = (tmp_path / "labels" / "classes.txt").read_text()
    assert written.splitlines() == ["two lines", "two lines (1)", "2", "3", "e"]
    assert table(["class", "AP"], [["two\nlines", 0.5]]).splitlines()[2:] == ["two lines  0.500"]


def test_a_picture_that_the_detector_does_not_take_costs_no_other(tmp_path, capsys):
    paths = pictures(tmp_path, ("a.png", 20), ("b.png", 5), ("c.png", 20))
    assert [e["drawn"] for e in predict_pictures(Stub(), paths, tmp_path / "out", 0.0, 5)] == ["a.png", "c.png"]
    assert f"left out: '{paths[1]}': an image is too small" in capsys.readouterr().err
    with pytest.raises(UserError, match="an image is too small"):
        predict_pictures(Stub(), paths[1:2], tmp_path / "out", 0.0, 5)


@pytest.mark.parametrize("option", ["--save_txt", "--save_conf", "--save_coco"])
def test_videos_alone_have_no_files_of_pictures(option, tmp_path, capsys):
    (tmp_path / "a.mp4").touch()
    assert main(["predict", "--checkpoint", "x.pth", "--input", str(tmp_path), option, "true"]) == 2
    said = capsys.readouterr().err
    assert f"{option} is for pictures" in said and "holds videos alone" in said
