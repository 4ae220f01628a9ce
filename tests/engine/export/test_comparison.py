"""The pictures on which an export is compared."""

from PIL import Image

from engine.export.compare import MOST, sample_batches
from util.config import EvalDataConfig


def test_of_a_folder_of_thousands_the_first_are_compared(tmp_path):
    for number in range(MOST + 3):
        Image.new("RGB", (12, 10)).save(tmp_path / f"{number:02}.png")
    batches = sample_batches(str(tmp_path), EvalDataConfig(eval_size=8, max_size=16), None)
    assert [len(images) for images in batches] == [1] * MOST + [2]
