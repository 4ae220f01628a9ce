"""Ids in a column, of which few take more than four bytes each."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np

from datasets.entries import Id
from datasets.texts import Texts
from util.shared import SharesArrays, shared

WRITTEN = {"i": int, "f": float, "s": str}  # how a text column of ids says what each is


class IdColumn(SharesArrays, Sequence[Id]):
    """A column of ids, equal to a list of the same.

    Args:
        values: whole numbers in an array; or, where some are text or floats, texts whose first letter is of `WRITTEN`.
    """

    def __init__(self, values: np.ndarray | Texts):
        self.numbers: np.ndarray | None = None
        self.texts: Texts | None = None
        if isinstance(values, Texts):
            self.texts = values
        else:
            small = not len(values) or -(2**31) <= values.min() <= values.max() < 2**31
            (self.numbers,) = shared(values.astype(np.int32 if small else np.int64, copy=False))

    @classmethod
    def of(cls, values: Iterable[Id] | np.ndarray) -> "IdColumn":
        """A column of these ids."""
        if isinstance(values, IdColumn):
            return values
        if isinstance(values, np.ndarray) and values.dtype.kind == "i":
            return cls(values)
        listed = [int(v) if isinstance(v, np.integer) else v for v in values]
        if all(type(v) is int and -(2**63) <= v < 2**63 for v in listed):
            return cls(np.array(listed, dtype=np.int64))
        return cls(Texts.of(map(_written, listed)))

    def take(self, rows: np.ndarray) -> "IdColumn":
        """The column of some rows, in their order."""
        return IdColumn(self.texts.take(rows) if self.texts is not None else self._whole[rows])

    def positions_in(self, listed: "IdColumn") -> np.ndarray:
        """`[N]`, where each id stands in another column, whose ids differ; -1 for one that it has not."""
        if self.numbers is None or listed.numbers is None:
            found = [listed._rows.get(value, -1) for value in self]
            return np.array(found, dtype=np.int32)
        if not len(listed):
            return np.full(len(self), -1, dtype=np.int32)
        order = listed._order
        ordered = listed.numbers if order is None else listed.numbers[order]
        at = np.searchsorted(ordered, self.numbers).clip(max=len(listed) - 1)
        rows = at if order is None else order[at]
        return np.where(ordered[at] == self.numbers, rows, -1).astype(np.int32)

    def find(self, value: Id) -> int:
        """Where an id stands in this column, whose ids differ; -1 if it does not."""
        return int(IdColumn.of([value]).positions_in(self)[0])

    @property
    def _whole(self) -> np.ndarray:
        assert self.numbers is not None  # where there are no texts
        return self.numbers

    @cached_property
    def _order(self) -> np.ndarray | None:
        """The rows in the order of their numbers; None if they are in it."""
        numbers = self._whole
        return None if np.all(numbers[1:] > numbers[:-1]) else np.argsort(numbers, kind="stable")

    @cached_property
    def _rows(self) -> dict[Id, int]:
        """The row of each id, whatever they are: 7.0 is 7."""
        return {value: row for row, value in enumerate(self)}

    def __len__(self) -> int:
        return len(self.texts) if self.texts is not None else len(self._whole)

    def __getitem__(self, row):  # type: ignore[no-untyped-def]  # an id, or a column of some
        if isinstance(row, slice):
            return self.take(np.arange(len(self))[row])
        return _read(self.texts[row]) if self.texts is not None else int(self._whole[row])

    def __iter__(self) -> Iterator[Id]:
        return map(_read, self.texts) if self.texts is not None else iter(self._whole.tolist())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, IdColumn) and self.numbers is not None and other.numbers is not None:
            return np.array_equal(self.numbers, other.numbers)
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]


def _written(value: Id) -> str:
    kind = "s" if isinstance(value, str) else "f" if isinstance(value, float) else "i"
    return kind + (value if isinstance(value, str) else repr(float(value)) if kind == "f" else str(int(value)))


def _read(text: str) -> Id:
    return WRITTEN[text[0]](text[1:])
