"""Videos through a detector that finds the one white square of every frame, whose place is known."""

import json
import weakref
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image

from engine.predict_video import predict_videos
from engine.predictor import Predictor
from models.postprocess import Detections
from util.errors import UserError
from util.video import VideoWriter

SIDE, SQUARE = 64, 16
TICKS = [0, 1, 2, 5, 6, 7, 8, 20, 21, 22, 23]  # of a tenth of a second: a variable frame rate


def place(i: int) -> tuple[int, int]:
    return 4 * i, 44 - 4 * i


def clip(path: Path, frames: int = len(TICKS)) -> Path:
    with VideoWriter(path, Fraction(10), Fraction(1, 10)) as writer:
        for i in range(frames):
            picture = Image.new("RGB", (SIDE, SIDE))
            x, y = place(i)
            picture.paste((255, 255, 255), (x, y, x + SQUARE, y + SQUARE))
            writer.write(picture, TICKS[i])
    return path


class Finder(Predictor):
    """Finds the white square by its pixels; knows how many pictures it was given and how many are alive."""

    def __init__(self, fail_at: int | None = None):
        super().__init__(torch.nn.Identity(), lambda p: p, self.batch, self.found, {0: "square"})
        self.model.forward = lambda images, mask: images
        self.batches: list[int] = []
        self.alive: list[int] = []
        self._seen: list[weakref.ref] = []
        self._fail_at = fail_at

    def batch(self, pictures):
        if self._fail_at is not None and sum(self.batches) >= self._fail_at:
            raise KeyboardInterrupt
        self.batches.append(len(pictures))
        self._seen += [weakref.ref(p) for p in pictures]
        self.alive.append(sum(ref() is not None for ref in self._seen))
        return SimpleNamespace(images=[np.asarray(p) for p in pictures], padding_mask=None)

    def found(self, images, sizes, top_k):
        results = []
        for pixels in images:
            y, x = np.nonzero(pixels.min(-1) > 127)
            box = torch.tensor([[x.min(), y.min(), x.max() + 1, y.max() + 1]], dtype=torch.float32)
            results.append(Detections(box, torch.tensor([0.9]), torch.tensor([0])))
        return results


@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_frame_has_its_line_and_its_drawing(tmp_path, capsys, batch_size):
    (tmp_path / "out").mkdir()
    finder = Finder()
    assert predict_videos(finder, [clip(tmp_path / "a.mp4")], tmp_path / "out", 0.5, 10, batch_size) == 1
    lines = [json.loads(line) for line in (tmp_path / "out" / "a.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(len(TICKS)))
    assert [line["time"] for line in lines] == [t / 10 for t in TICKS]
    for i, line in enumerate(lines):
        (found,) = line["detections"]
        (x, y), (label, name) = place(i), (found["label"], found["name"])
        assert (label, name, found["score"]) == (0, "square", pytest.approx(0.9))
        assert found["box_xyxy"] == pytest.approx([x, y, x + SQUARE, y + SQUARE], abs=1)
    assert max(finder.batches) == batch_size and max(finder.alive) <= 2 * batch_size + 1
    with av.open(str(tmp_path / "out" / "a.mp4")) as container:
        stream = container.streams.video[0]
        drawn = list(container.decode(stream))
        assert [frame.time for frame in drawn] == [t / 10 for t in TICKS]
    pixels = drawn[3].to_ndarray(format="rgb24").astype(int)
    factor = pixels.shape[0] // SIDE  # small pictures are drawn larger
    x, y = (v * factor for v in place(3))
    edge = pixels[y : y + SQUARE * factor, x : x + 1].mean((0, 1))
    assert edge[0] > edge[1] + 50 and edge[0] > edge[2] + 50  # the red of the first class
    said = capsys.readouterr().out
    assert f"11 boxes on 11 frames of '{tmp_path}/a.mp4'" in said and "a.mp4 and a.jsonl are in" in said


def test_files_of_one_name_and_those_that_cannot_be_read(tmp_path, capsys):
    for folder in ("out", "b"):
        (tmp_path / folder).mkdir()
    first, second = clip(tmp_path / "a.mp4", 2), clip(tmp_path / "b" / "a.mp4", 3)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    videos = [first, tmp_path / "bad.mp4", second]
    assert predict_videos(Finder(), videos, tmp_path / "out", 0.5, 10, 4) == 2
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.jsonl", "a.mp4", "a_2.jsonl", "a_2.mp4"]
    assert len((tmp_path / "out" / "a_2.jsonl").read_text().splitlines()) == 3
    said = capsys.readouterr().err
    assert said.startswith("left out: video") and said.count("\n") == 1
    with pytest.raises(UserError, match=r"the video '.*bad\.mp4' could not be read"):
        predict_videos(Finder(), videos[1:2], tmp_path / "out", 0.5, 10, 4)
    with pytest.raises(UserError, match="none of the 2 videos"):
        predict_videos(Finder(), [videos[1], videos[1]], tmp_path / "out", 0.5, 10, 4)
    with pytest.raises(UserError, match="could overwrite"):
        predict_videos(Finder(), [first], tmp_path, 0.5, 10, 4)


def test_pictures_beside_them_are_not_lost_to_videos(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    assert predict_videos(Finder(), [tmp_path / "bad.mp4"], tmp_path / "out", 0.5, 10, 4, alone=False) == 0
    assert capsys.readouterr().err.startswith("left out: video")


def test_what_was_done_before_an_interruption_stays(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        predict_videos(Finder(fail_at=6), [clip(tmp_path / "a.mp4")], tmp_path / "out", 0.5, 10, 2)
    assert len((tmp_path / "out" / "a.jsonl").read_text().splitlines()) == 6
    with av.open(str(tmp_path / "out" / "a.mp4")) as container:
        assert len(list(container.decode(video=0))) == 6
