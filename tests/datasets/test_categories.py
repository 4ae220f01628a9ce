import pytest

from datasets.annotations import CategoryEntry
from datasets.categories import Category, categories_of, distinct_names, foreign_categories, match_categories
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


def test_match_categories_goes_by_name():
    model = [Category(0, 1, "cat"), Category(1, 2, "dog"), Category(2, 3, "bird")]
    data = [Category(0, 7, "dog"), Category(1, 1, "bird"), Category(2, 5, "fish")]
    assert match_categories(model, data) == {1: 7, 2: 1}


def test_match_categories_goes_by_id_only_without_names():
    data = [Category(0, 7, "dog"), Category(1, 1, "bird")]
    assert match_categories([Category(7, 7, ""), Category(8, 8, "")], data) == {7: 7}


@pytest.mark.parametrize("model", [[Category(0, 7, "cat")], [Category(0, 3, "")]])
def test_match_categories_refuses_classes_that_have_nothing_in_common(model):
    with pytest.raises(UserError, match="none in common"):
        match_categories(model, [Category(0, 7, "dog"), Category(1, 1, "bird")])


def test_91_foreign_classes_are_those_of_coco():
    categories = foreign_categories(91, {})
    assert len(categories) == 80
    assert all(c.label == c.id for c in categories)
    names = {c.id: c.name for c in categories}
    assert [names[i] for i in (1, 13, 90)] == ["person", "stop sign", "toothbrush"]
    assert not set(names) & {0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83}


def test_other_foreign_classes_keep_the_names_they_have():
    assert foreign_categories(3, {0: "a", 2: "c"}) == [Category(0, 0, "a"), Category(1, 1, ""), Category(2, 2, "c")]
    assert foreign_categories(91, {1: "N/A"})[1] == Category(1, 1, "N/A")


def test_a_name_that_an_earlier_class_has_is_told_apart_by_its_id():
    entries = [CategoryEntry(1, "cat"), CategoryEntry(2, "dog"), CategoryEntry(5, "cat")]
    assert distinct_names(entries) == ["cat", "dog", "cat (5)"]
    assert distinct_names(categories_of(entries)) == ["cat", "dog", "cat (5)"]
