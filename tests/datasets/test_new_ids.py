from datasets.new_ids import new_numbers


def test_numbers_for_text():
    assert new_numbers([3, 7.0, "5", "5.0", "7", "x"]) == {3: 3, 7.0: 7.0, "5": 5, "5.0": 8, "7": 9, "x": 10}
    assert new_numbers([]) == {}
