"""Records by task key that are read from the manifest only when someone asks for them."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, ValuesView

import numpy as np

from fluxexp.records import Record
from fluxexp.storage.manifest_index import Flags, ManifestIndex, Rows


class StoredRecords(Mapping[str, Record]):
    """The records of some rows of an index, in the order of `rows`. It keeps a few bytes for each of them."""

    def __init__(self, index: ManifestIndex, rows: Rows) -> None:
        self._index = index
        self._rows = rows
        self._flags: Flags = np.zeros(len(index), dtype=np.bool_)
        self._flags[rows] = True

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        keys = list(self._index.row_of)
        return map(keys.__getitem__, self._rows.tolist())

    def __contains__(self, key: object) -> bool:
        row = self._index.row_of.get(key) if isinstance(key, str) else None
        return row is not None and row < len(self._flags) and bool(self._flags[row])

    def __getitem__(self, key: str) -> Record:
        if key not in self:
            raise KeyError(key)
        return next(self._index.records(np.array([self._index.row_of[key]], dtype=np.int32)))

    def values(self) -> ValuesView[Record]:
        """The records. Iteration reads the streams once."""
        return _Values(self)

    def items(self) -> ItemsView[str, Record]:
        """The keys and records. Iteration reads the streams once."""
        return _Items(self)

    def num_ok(self) -> int:
        """Number of records of attempts that succeeded."""
        return int((self._index.column("is_ok")[self._rows] != 0).sum())

    def at_most(self, limit: int) -> StoredRecords:
        """These records, or `limit` of them: up to half of them failed, and the rest at regular intervals."""
        if len(self) <= limit:
            return self
        is_ok = self._index.column("is_ok")[self._rows] != 0
        failed = self._rows[~is_ok][: max(limit // 2, limit - int(is_ok.sum()))]
        succeeded = self._rows[is_ok]
        number = limit - len(failed)
        chosen = succeeded[np.arange(number) * len(succeeded) // max(1, number)]
        return StoredRecords(self._index, np.concatenate((failed, chosen)))

    def stream(self) -> Iterator[Record]:
        """Yield the records, in order."""
        return self._index.records(self._rows)


class _Values(ValuesView[Record]):
    def __init__(self, records: StoredRecords) -> None:
        super().__init__(records)
        self._records = records

    def __iter__(self) -> Iterator[Record]:
        return self._records.stream()


class _Items(ItemsView[str, Record]):
    def __init__(self, records: StoredRecords) -> None:
        super().__init__(records)
        self._records = records

    def __iter__(self) -> Iterator[tuple[str, Record]]:
        return ((record.key, record) for record in self._records.stream())
