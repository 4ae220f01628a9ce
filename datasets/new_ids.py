"""Numbers for ids that are text."""

from collections.abc import Iterable

from datasets.annotations import Id
from datasets.ids import id_order
from datasets.values import (
    as_whole,
)


def new_numbers(ids: Iterable[Id]) -> dict[Id, Id]:
    """A number for each id that is text: the one that it says, if it is free; else one above all others.

    Numbers stay as they are. What is numbered above the others keeps the order of the text.
    """
    known = dict.fromkeys(ids)
    numbers: dict[Id, Id] = {value: value for value in known if not isinstance(value, str)}
    used = set(numbers)
    texts = sorted((value for value in known if isinstance(value, str)), key=id_order)
    for text in texts:
        number = as_whole(text)
        if number is not None and number not in used:
            numbers[text] = number
            used.add(number)
    following = max([0, *(int(n) for n in used if not isinstance(n, str))]) + 1
    for text in texts:
        if text not in numbers:
            numbers[text] = following
            following += 1
    return numbers
