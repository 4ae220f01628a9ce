import pytest

from datasets.annotations import CategoryEntry
from datasets.categories import (
    Category,
    assume_coco,
    categories_of,
    distinct_names,
    foreign_categories,
    rename_by_id,
)
from util.errors import UserError


def test_labels_follow_the_order_of_ids_numbers_first():
    entries = [CategoryEntry("b", "text"), CategoryEntry(90, "toothbrush"), CategoryEntry(7.0, "car")]
    assert categories_of(entries) == [Category(0, 7, "car"), Category(1, 90, "toothbrush"), Category(2, "b", "text")]
    assert [c.label for c in categories_of(entries[1:], "original")] == [7, 90]


@pytest.mark.parametrize("bad", [-1, "one"])
def test_original_labels_need_ids_that_can_be_labels(bad):
    categories = [CategoryEntry(1, "a"), CategoryEntry(bad, "b")]
    assert {c.id for c in categories_of(categories)} == {1, bad}
    with pytest.raises(UserError, match=repr(bad)):
        categories_of(categories, "original")


def test_foreign_classes_keep_the_names_they_have_and_their_count_says_nothing():
    assert foreign_categories(3, {0: "a", 2: "c"}) == [Category(0, 0, "a"), Category(1, 1, ""), Category(2, 2, "c")]
    assert {c.name for c in foreign_categories(91, {})} == {""}


def test_91_classes_without_names_can_be_assumed_to_be_those_of_coco():
    categories = assume_coco(foreign_categories(91, {}))
    assert len(categories) == 80
    assert all(c.label == c.id for c in categories)
    names = {c.id: c.name for c in categories}
    assert [names[i] for i in (1, 13, 90)] == ["person", "stop sign", "toothbrush"]
    assert not set(names) & {0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    for other in (foreign_categories(91, {1: "N/A"}), foreign_categories(90, {})):
        assert assume_coco(other) == other


def test_an_annotation_file_names_classes_by_their_ids():
    classes = foreign_categories(4, {3: "old"})
    entries = [CategoryEntry(2, "WBC"), CategoryEntry(7, "other"), CategoryEntry(1, "RBC")]
    assert [c.name for c in rename_by_id(classes, entries, "a.json")] == ["", "RBC", "WBC", "old"]
    with pytest.raises(UserError, match=r"'a.json' names classes with the ids 7, of which"):
        rename_by_id(classes, entries[1:2], "a.json")


def test_a_name_that_an_earlier_class_has_is_told_apart_by_its_id():
    entries = [CategoryEntry(1, "cat"), CategoryEntry(2, "dog"), CategoryEntry(5, "cat")]
    assert distinct_names(entries) == ["cat", "dog", "cat (5)"]
    assert distinct_names(categories_of(entries)) == ["cat", "dog", "cat (5)"]
