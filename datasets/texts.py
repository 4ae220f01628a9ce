"""Many short texts in two arrays."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from util.shared import SharesArrays, shared

CODE = ("utf-8", "surrogatepass")  # halves of letters stay what they are


class Texts(SharesArrays, Sequence[str]):
    """A column of texts.

    Args:
        letters: `[bytes]`, uint8, all texts one after another, in UTF-8.
        ends: `[N + 1]`, int64: text i lies between `ends[i]` and `ends[i + 1]`.
    """

    def __init__(self, letters: np.ndarray, ends: np.ndarray):
        self.letters, self.ends = shared(letters, ends)

    @classmethod
    def of(cls, values: Iterable[str]) -> "Texts":
        """A column of these texts."""
        parts = [value.encode(*CODE) for value in values]
        lengths = np.fromiter(map(len, parts), np.int64, len(parts))
        return cls(np.frombuffer(b"".join(parts), np.uint8), np.append(0, np.cumsum(lengths)))

    def take(self, rows: np.ndarray) -> "Texts":
        """The column of some rows, in their order."""
        starts, lengths = self.ends[:-1][rows], np.diff(self.ends)[rows]
        ends = np.append(0, np.cumsum(lengths))
        places = np.repeat(starts - ends[:-1], lengths) + np.arange(ends[-1])
        return Texts(self.letters[places], ends)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, row):  # type: ignore[no-untyped-def]  # a text, or a column of some
        if isinstance(row, slice):
            return self.take(np.arange(len(self))[row])
        row = range(len(self))[row]
        return self.letters[self.ends[row] : self.ends[row + 1]].tobytes().decode(*CODE)

    def __iter__(self) -> Iterator[str]:
        letters, start = self.letters.tobytes(), 0
        for end in self.ends[1:].tolist():
            yield letters[start:end].decode(*CODE)
            start = end
