"""The manifest: one JSON line for each attempt at a task, in streams that are only appended to.

Each process writes its own stream with a random name. So no two processes share a stream, and no name depends on a
rank. Readers merge all streams: success beats failure, and of two equal results the later attempt counts.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from fluxexp.records import Record
from fluxexp.storage.record_lines import ParsedLines, line_streams, parse_streams
from fluxexp.storage.result_files import MANIFEST
from fluxexp.storage.run_store import RunStore


class ManifestWriter:
    """Appends records to a new stream of `store`. Not thread-safe: the writer thread owns it."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._stream = f"{MANIFEST}{uuid.uuid4().hex}.jsonl"

    def append(self, record: Record) -> None:
        """Append `record` durably. The image that it names must be in the store already."""
        self._store.append_record(self._stream, record.to_json().encode())

    def flush(self) -> None:
        """Write the records that wait in memory. OSError if they cannot be written."""
        self._store.flush(self._stream)


def read_attempts(store: RunStore) -> ParsedLines[Record]:
    """Every attempt in the manifest of `store`. A torn last line is left out: its task counts as not done."""
    return parse_streams(store, line_streams(store, MANIFEST), Record.from_json, "is not a record")


def merge(attempts: Iterable[Record]) -> dict[str, Record]:
    """The result of each task, by key. Its `attempt` counts all attempts at the task.

    If the image or the mask of a sample changed, only attempts with the latest content count.
    """
    attempts = list(attempts)
    latest: dict[str, Record] = {}
    for record in attempts:
        if record.inputs is not None and (record.key not in latest or record.attempt >= latest[record.key].attempt):
            latest[record.key] = record
    outcome: dict[str, Record] = {}
    for record in attempts:
        if record.inputs is not None and record.inputs != latest[record.key].inputs:
            continue
        known = outcome.get(record.key)
        if known is None or (record.status == "ok", record.attempt) >= (known.status == "ok", known.attempt):
            outcome[record.key] = record
    return outcome
