"""Which class is which: by name, by id where a checkpoint has no names, and in words where it is not plain."""

import pytest

from datasets.categories import Category, foreign_categories
from datasets.coco_names import COCO_NAMES
from datasets.matching import hint_at, match_categories
from util.errors import UserError

CELLS = {1: "RBC", 2: "WBC", 3: "Platelets"}
NAMELESS = foreign_categories(91, {})
COCO = dict(COCO_NAMES)


def classes(names: dict) -> list[Category]:
    return [Category(label, i, name) for label, (i, name) in enumerate(names.items())]


def test_names_decide_whatever_the_ids():
    model = classes({1: "cat", 2: "dog", 3: "bird"})
    found = match_categories(model, classes({7: "dog", 1: "bird", 5: "fish"}))
    assert found.category_of == {1: 7, 2: 1}
    assert found.remarks == ["not matched: of the checkpoint 'cat'; of the data set 'fish', which nothing can find"]
    assert match_categories(model, model).remarks == []


def test_91_classes_without_names_on_own_ids_are_matched_by_id():
    found = match_categories(NAMELESS, classes(CELLS))
    assert found.category_of == {1: 1, 2: 2, 3: 3}
    assert "no class names: 3 classes are matched by id (if it is a released one, --match names" in found.remarks[0]


def test_one_name_that_coco_has_does_not_make_own_ids_cocos():
    assert match_categories(NAMELESS, classes({1: "RBC", 2: "dog"})).category_of == {1: 1, 2: 2}
    by_name = match_categories(NAMELESS, classes({1: "RBC", 2: "dog"}), how="names")
    assert by_name.category_of == {18: 2}
    assert by_name.remarks[1] == "not matched: of the data set 'RBC', which nothing can find"


@pytest.mark.parametrize(
    "data",
    [COCO, {i: COCO[i] for i in (18, 1, 90)}, dict(enumerate(COCO.values()))],
    ids=["all", "three", "all renumbered"],
)
def test_91_classes_without_names_are_cocos_where_the_data_are(data):
    found = match_categories(NAMELESS, classes(data))
    assert {COCO[label]: data[i] for label, i in found.category_of.items()} == {n: n for n in data.values()}
    assert "matched by COCO's names, which are assumed" in found.remarks[0] and len(found.remarks) == 1


@pytest.mark.parametrize("data", [{1: "dog", 2: "cat"}, {1: "Dog", 2: "traffic_light"}])
def test_where_it_might_be_either_the_user_has_to_say(data):
    with pytest.raises(UserError, match=r"--match names; if it was trained on these ids, --match ids"):
        match_categories(NAMELESS, classes(data))
    assert match_categories(NAMELESS, classes(data), how="ids").category_of == {1: 1, 2: 2}


def test_other_counts_without_names_are_matched_by_id_and_what_has_no_head_is_named():
    found = match_categories(foreign_categories(3, {}), classes(CELLS))
    assert found.category_of == {1: 1, 2: 2}
    assert found.remarks[1] == "not matched: of the data set 'Platelets', which nothing can find"
    with pytest.raises(UserError, match="keeps no class names to match by; take --match ids"):
        match_categories(foreign_categories(3, {}), classes(CELLS), how="names")


def test_by_id_on_request_says_which_names_differ():
    found = match_categories(classes({1: "rbc", 2: "WBC"}), classes(CELLS), how="ids")
    assert found.category_of == {0: 1, 1: 2}
    assert found.remarks[0] == "2 classes are matched by id, though names differ: 'rbc' is 'RBC'"


def test_another_spelling_is_named_on_both_sides():
    found = match_categories(
        classes(CELLS), classes({1: "rbc", 2: "WBC", 3: "Platelets"}), "training images", "validation images"
    )
    assert found.category_of == {1: 2, 2: 3}
    assert found.remarks == [
        "not matched: of the training images 'RBC'; of the validation images 'rbc' (did you mean 'RBC'?), "
        "which nothing can find"
    ]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("wine_glass", " (did you mean 'Wine Glass'?)"), ("Platelet", " (did you mean 'Platelets'?)"), ("cart", "")],
)
def test_hints(name, hint):
    assert hint_at(name, ["car", "Platelets", "Wine Glass"]) == hint


def test_doubled_names_are_told_apart_by_id_where_ids_agree():
    data = classes({1: "cell", 2: "cell", 3: "dog"})
    assert match_categories(data[:2], data).category_of == {0: 1, 1: 2}
    assert match_categories(classes({2: "cell", 9: "dog"}), data).category_of == {0: 2, 1: 3}


@pytest.mark.parametrize(
    ("model", "how", "said"),
    [
        ([Category(0, 7, "cat")], "auto", "none in common, matched by name; --match ids"),
        ([Category(0, 7, "Dog")], "auto", r"none in common, matched by name \(did you mean 'Dog'\?\)"),
        ([Category(0, 3, "")], "auto", "none in common, matched by id$"),
        ([Category(0, 3, "dog")], "ids", "none in common, matched by id; --match names"),
    ],
)
def test_nothing_in_common_is_refused(model, how, said):
    with pytest.raises(UserError, match=said):
        match_categories(model, classes({7: "dog", 1: "bird"}), how=how)
