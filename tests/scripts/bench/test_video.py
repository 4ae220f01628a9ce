"""What a video takes: the clip that is made, and the figures that are read, of a stand-in for `main.py`."""

import numpy as np
import pytest

from datasets.video import opened_video
from scripts.bench import video
from util.errors import UserError

STAND_IN = """
import sys
held = bytearray({held})
print("3 boxes on 2 frames of 'a.mp4', 12.5 frames a second; a.mp4 and a.jsonl are in out")
sys.exit({code})
"""


def test_a_clip_is_the_same_for_the_same_seed_and_moves(tmp_path):
    clips = []
    for i, seed in enumerate((0, 0, 1)):
        with opened_video(video.make_clip(tmp_path / f"{i}.mp4", 2, rate=5, size=32, seed=seed)) as opened:
            clips.append(np.stack([np.asarray(picture) for _, picture in opened.frames()]).astype(int))
    first, second, other = clips
    assert len(first) == 10 and (abs(first[1:] - first[:-1]).mean((1, 2, 3)) > 0.5).all()
    assert abs(first - second).mean() < 1 and abs(first - other).mean() > 10


def test_the_peak_is_that_of_the_process_and_grows_with_what_it_holds(tmp_path, monkeypatch):
    peaks = []
    for held in (0, 300 << 20):
        (tmp_path / "main.py").write_text(STAND_IN.format(held=held, code=0))
        monkeypatch.setattr(video, "MAIN", tmp_path / "main.py")
        peak, speed = video.measured("a.pth", tmp_path / "a.mp4", [])
        assert speed == 12.5
        peaks.append(peak)
    assert 290 < peaks[1] - peaks[0] < 310
    (tmp_path / "main.py").write_text(STAND_IN.format(held=0, code=2))
    with pytest.raises(UserError, match="ended with 2"):
        video.measured("a.pth", tmp_path / "a.mp4", [])
