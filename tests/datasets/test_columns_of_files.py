"""The tables that annotations are kept in are equal to lists of what was put into them."""

import numpy as np
import pytest

from datasets.by_image import ByImage
from datasets.doubles import rows_alike
from datasets.entries import ImageEntry
from datasets.id_column import IdColumn
from datasets.image_table import ImageTable
from datasets.texts import Texts

NAMES = ["a.jpg", "", "ä/日本.png", "half \ud83d letter", "𝄞"]
IDS = [[3, 1, 2], [2**40, -5, 0], [7.0, "7", 7, "seven", "", 2**70], []]


def test_texts_are_what_they_were():
    texts = Texts.of(NAMES)
    assert list(texts) == [texts[i] for i in range(5)] == NAMES and texts[-1] == NAMES[-1] and len(texts) == 5
    assert list(texts.take(np.array([4, 1, 2, 2]))) == [NAMES[4], NAMES[1], NAMES[2], NAMES[2]]
    assert list(texts[1:3]) == NAMES[1:3] and list(Texts.of([])) == []
    with pytest.raises(IndexError):
        texts[5]


@pytest.mark.parametrize("ids", IDS, ids=str)
def test_ids_are_what_they_were(ids):
    column = IdColumn.of(ids)
    assert column == ids and list(column) == ids == [column[i] for i in range(len(ids))]
    assert [type(value) for value in column] == [type(value) for value in ids]
    assert column[1:] == ids[1:] and column != [*ids, 1]


@pytest.mark.parametrize("used", [[1, 3, 9, 1], [7, "7", "x", 7.0, 2**70], [2.0, "2"], []], ids=str)
@pytest.mark.parametrize("listed", IDS, ids=str)
def test_positions_are_those_of_a_dictionary(used, listed):
    distinct = list(dict.fromkeys(listed))
    at = {value: row for row, value in enumerate(distinct)}
    positions = IdColumn.of(used).positions_in(IdColumn.of(distinct))
    assert positions.tolist() == [at.get(value, -1) for value in used]
    assert [IdColumn.of(distinct).find(value) for value in used] == positions.tolist()


def test_images_are_what_they_were():
    entries = [ImageEntry(4, "a", 3, 2), ImageEntry("b", "ä"), ImageEntry(1.0, "c", None, 5), ImageEntry(2, "d", 7)]
    table = ImageTable.of(entries)
    assert table == entries and list(table) == [table[i] for i in range(4)] == entries and table[1:] == entries[1:]
    assert table.sizes.tolist() == [[3, 2], [np.inf, np.inf], [np.inf, np.inf], [np.inf, np.inf]]
    assert table != ImageTable.of([*entries[:3], ImageEntry(2, "d", 8)]) and table == ImageTable.of(entries)


def test_rows_of_an_image_are_together_and_nobody_can_change_them():
    rows = np.arange(8).reshape(4, 2)
    by_image = ByImage(rows, np.array([2, 0, 2, 0]), 4)
    assert [some.tolist() for some in by_image] == [[[2, 3], [6, 7]], [], [[0, 1], [4, 5]], []]
    assert by_image.counts.tolist() == [2, 0, 2, 0]
    by_image[0][:] = 9
    assert by_image[0].tolist() == [[2, 3], [6, 7]]


def test_equal_rows_are_found_among_others():
    rng = np.random.default_rng(0)
    columns = [rng.integers(0, 5, 400).astype(float) for _ in range(4)]
    rows = list(zip(*columns))
    doubled = [i for i, row in enumerate(rows) if rows.count(row) > 1]
    assert rows_alike(columns).tolist() == doubled
    assert rows_alike([np.array([0.0, 1.0, -0.0])]).tolist() == [0, 2]
    assert rows_alike([np.zeros(0)]).tolist() == []
