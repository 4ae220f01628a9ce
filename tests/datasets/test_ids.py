import pytest

from datasets.coco import from_coco
from datasets.ids import check_listed, counterparts, id_order, remark_on, renamed, some_ids
from tests.datasets.helpers import annotation
from util.errors import UserError


@pytest.mark.parametrize(
    ("used", "listed", "expected"),
    [
        (["1", "2", "1"], [1, 2, 3], {"1": 1, "2": 2}),
        ([1, 2], ["1", "2"], {1: "1", 2: "2"}),
        (["000139", "7.0"], [139, 7], {"000139": 139, "7.0": 7}),
        ([1.0, 2], [1, 2.0], {}),  # equal as they are
        (["x1", 2], ["x1", 2], {}),
        (["1", 2], ["1", 1, 2], {}),  # each is listed
        (["01"], ["1", 1], {}),  # two could be meant
        ([1], ["01", "1"], {}),
        (["1", "x"], [1], {"1": 1}),
        (["a"], ["A"], {}),
        ([], [1], {}),
    ],
)
def test_text_and_number_of_one_value_are_matched_where_one_can_be_meant(used, listed, expected):
    found = counterparts(used, listed)
    assert found == expected and list(map(type, found.values())) == list(map(type, expected.values()))
    assert renamed(used, found) == [expected.get(v, v) for v in used]


def test_ids_of_both_types_have_an_order():
    assert sorted([2, "b", 10, "a", 1.0], key=id_order) == [1.0, 2, 10, "a", "b"]


def test_the_remark_quotes_the_first_with_its_type_and_counts_the_others():
    said = remark_on({"7": 7, "8": 8, "9": 9}, "'a.json': image_id", "the images")
    assert said.startswith("'a.json': image_id '7' (text) is taken for the id 7 (number) of the images, ")
    assert said.endswith(", and 2 other values alike")
    assert remark_on({7: "7"}, "f: k", "w") == "f: k 7 (number) is taken for the id '7' (text) of w"
    assert some_ids([1, "b", 3, 4]) == "1 (number), 'b' (text), 3 (number), ..." and some_ids([]) == "none"


def listing(image, category):
    images = [{"id": i, "file_name": "a.png"} for i in (1, "x2")]
    objects = [annotation(4, 1, 1, [0, 0, 2, 2]), annotation(5, image, category, [0, 0, 2, 2])]
    return from_coco({"images": images, "annotations": objects, "categories": [{"id": 1, "name": "a"}]}, "f.json")


def test_ids_that_the_file_does_not_list_are_quoted_with_types():
    check_listed(listing("1", "1"))
    with pytest.raises(UserError, match=r"annotation 5 in 'f.json' is of image 'x' \(text\).* 1 \(number\), 'x2'"):
        check_listed(listing("x", 1))
    with pytest.raises(UserError, match=r"annotation 5 .* unknown category 2 \(number\).* are 1 \(number\)"):
        check_listed(listing("x2", 2))
