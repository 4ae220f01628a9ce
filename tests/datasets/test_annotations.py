from pathlib import Path

import numpy as np
import pytest

from datasets.annotations import Annotations, CategoryEntry, ImageEntry


def columns(**more) -> dict:
    given = {"ids": [1, 2], "image_ids": [1, 1], "category_ids": [1, 1]}
    return given | {"boxes": np.zeros((2, 4)), "areas": np.zeros(2), "crowds": np.zeros(2, dtype=bool)} | more


@pytest.mark.parametrize(
    "more", [{"ids": [1]}, {"image_ids": []}, {"areas": np.zeros(3)}, {"boxes": np.zeros((2, 5))}, {"crowds": []}]
)
def test_columns_of_unequal_length_are_a_mistake_of_the_reader(more):
    entries = Path("made"), [CategoryEntry(1, "cat")], [ImageEntry(1, "1.png")]
    assert len(Annotations(*entries, **columns())) == 2
    with pytest.raises(ValueError, match="columns"):
        Annotations(*entries, **columns(**more))


def test_the_size_of_an_image_is_known_if_both_sides_are():
    sizes = [ImageEntry(1, "a", *size).size for size in ((), (4,), (None, 3), (4, 3))]
    assert sizes == [None, None, None, (4, 3)]
