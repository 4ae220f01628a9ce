import math

import pytest

from datasets.values import (
    as_area,
    as_box,
    as_flag,
    as_float,
    as_text,
    as_whole,
    is_box,
    is_id,
    is_name,
    stated_size,
    typed,
)


@pytest.mark.parametrize("value", [1, 1.0, True, "1", " 1 "])
def test_what_is_yes(value):
    assert as_flag(value) is True


@pytest.mark.parametrize("value", [0, 0.0, -0.0, False, None, "0"])
def test_what_is_no(value):
    assert as_flag(value) is False


@pytest.mark.parametrize("value", [2, -1, 0.5, math.nan, "", "no", "false", "true", "2", [], [0], {}, [1]])
def test_what_is_neither_is_refused(value):
    assert as_flag(value) is None


@pytest.mark.parametrize(
    ("value", "number"),
    [(3, 3.0), (-2.5, -2.5), ("45969.0", 45969.0), (" 1e3 ", 1000.0), (10**400, math.inf), (-(10**400), -math.inf)],
)
def test_numbers(value, number):
    assert as_float(value) == number


@pytest.mark.parametrize("value", [True, False, None, "", "a", "1,5", "1_000", "0x10", [1], {}])
def test_what_is_no_number(value):
    assert as_float(value) is None


@pytest.mark.parametrize(
    ("value", "area"),
    [
        *[(12, 12.0), (0.5, 0.5), ("12.5", 12.5)],
        *[(v, None) for v in (0, -1, 0.0, math.nan, math.inf, "nan", "inf", "0", "-3", "", None, True, [3], 10**400)],
    ],
)
def test_an_area_is_a_positive_finite_number(value, area):
    assert as_area(value) == area


@pytest.mark.parametrize(
    ("value", "number"),
    [
        *[(7, 7), (7.0, 7), ("7", 7), ("007", 7), ("7.0", 7), (" -7 ", -7), ("9007199254740993.0", 9007199254740993)],
        *[(v, None) for v in (7.5, "7.5", "x7", "", "1e3", True, None, math.nan, math.inf, "\u0667", [7], "1" * 5000)],
    ],
)
def test_whole_numbers(value, number):
    assert as_whole(value) == number


def test_boxes():
    assert as_box([1, 2.5, "3", 4]) == [1.0, 2.5, 3.0, 4.0] and is_box([1, 2.5, 3, math.nan])
    for no_box in ([1, 2, 3], "1234", {"a": 1, "b": 2, "c": 3, "d": 4}, None, [1, 2, 3, True], [1, 2, 3, None]):
        assert as_box(no_box) is None and not is_box(no_box)
    assert not is_box([1, 2, "3", 4])


def test_halves_of_letters_are_marked():
    assert as_text("a\ud83d") == "a\ufffd" and as_text("\ud83d\ude00") == "\U0001f600" and as_text(5) == "5"


def test_ids_and_names():
    assert all(map(is_id, (0, 7, 7.0, -1, 10**30, "a", "")))
    assert not any(map(is_id, (True, None, 1.5, math.nan, math.inf, [1], {})))
    assert all(map(is_name, ("cat", "", 5))) and not any(map(is_name, (None, True, ["cat"], {})))


def test_a_size_is_two_whole_positive_numbers():
    assert stated_size({"width": 40.0, "height": 30}) == (40, 30)
    for width in ("40", 0, -40, 40.5, True, None, math.nan, 10**400):
        assert stated_size({"width": width, "height": 30}) is None


@pytest.mark.parametrize(
    ("value", "said"),
    [("1", "'1' (text)"), (1, "1 (number)"), (7.0, "7.0 (number)"), (True, "true"), (None, "null"), ([1], "[1]")],
)
def test_values_are_quoted_with_their_types(value, said):
    assert typed(value) == said
    assert len(typed("x" * 500)) < 100
