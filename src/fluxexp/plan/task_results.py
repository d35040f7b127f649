"""What the manifest says of the tasks of a plan, by task number. Arrays, because a run can have millions of tasks."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fluxexp.storage.manifest_index import Flags, ManifestIndex, Rows
from fluxexp.storage.stored_records import StoredRecords


@dataclass(frozen=True, slots=True)
class TaskResults:
    """One entry for each task of a plan."""

    index: ManifestIndex
    rows: Rows
    """Row of the task in `index`; -1 if it was never tried. The attempt may be outdated: the image or mask changed."""
    is_made: Flags
    """Whether the task has its image."""
    is_failed: Flags
    """Whether the last attempt failed."""

    def pending(self) -> array[int]:
        """Numbers of the tasks without an image."""
        return numbers_array(np.flatnonzero(~self.is_made))

    def finished(self) -> StoredRecords:
        """Records of the tasks with an image."""
        return StoredRecords(self.index, self.rows[self.is_made])

    def has_inputs(self, number: int) -> bool:
        """Whether the record of this task says which content its sample had. An older fluxexp did not write it."""
        return int(self.rows[number]) in self.index.sparse.inputs

    def known(self, column: str) -> npt.NDArray[Any]:
        """The values of a column of the index, over the tasks that were made or failed and that have it."""
        values = self.index.column(column)[self._rows_of_results()]
        return values[values >= 0]

    def notes(self) -> dict[str, int]:
        """How many tasks that were made or failed have each note, in the order of the first task with it."""
        of_rows = self.index.sparse.notes
        if not of_rows:
            return {}
        return dict(Counter(text for row in self._rows_of_results().tolist() for text in of_rows.get(row, ())))

    def errors(self) -> dict[str, tuple[int, int]]:
        """For each error, the number of tasks that failed with it, and the number of the first of them."""
        found: dict[str, tuple[int, int]] = {}
        for number in np.flatnonzero(self.is_failed).tolist():
            error = self.index.sparse.errors.get(int(self.rows[number])) or "unknown error"
            count, first = found.get(error, (0, number))
            found[error] = count + 1, first
        return found

    def _rows_of_results(self) -> Rows:
        return self.rows[self.is_made | self.is_failed]

    def attempts(self, pending: array[int]) -> EarlierAttempts:
        """How often earlier sessions tried the tasks `pending`."""
        # Attempts whose image is gone or outdated count, too: the next attempt must have a higher number.
        numbers = np.asarray(pending, dtype=np.int32)
        rows = self.rows[numbers]
        is_known = rows >= 0
        counts = self.index.column("attempt")[rows[is_known]]
        return EarlierAttempts(numbers_array(numbers[is_known]), numbers_array(counts))


class EarlierAttempts(Mapping[int, int]):
    """Number of earlier attempts by task number, without tasks that were never tried. Takes 8 bytes per task."""

    def __init__(self, numbers: array[int], counts: array[int]) -> None:
        """`numbers` are sorted, and `counts` belong to them."""
        self.numbers = numbers
        self.counts = counts

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)

    def __getitem__(self, number: int) -> int:
        place = bisect_left(self.numbers, number)
        if place == len(self.numbers) or self.numbers[place] != number:
            raise KeyError(number)
        return self.counts[place]


def numbers_array(numbers: npt.NDArray[Any]) -> array[int]:
    """An array of 32-bit numbers, which unlike one of NumPy is a sequence of Python's integers."""
    return array("i", np.ascontiguousarray(numbers, dtype=np.int32).tobytes())
