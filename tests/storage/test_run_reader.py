"""The reader of a run: strict and lenient, and how often it reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from fluxexp.errors import StorageError
from fluxexp.storage.run_reader import RunReader
from fluxexp.storage.run_writer import RunWriter
from fluxexp.storage.scores import ScoreLine
from fluxexp.storage.sharded_store import ShardedStore
from tests.storage.memory_store import MemoryStore
from tests.storage.test_manifest import record


class CountingStore(MemoryStore):
    """Counts how often each stream is read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()

    def records(self, stream: str) -> list[bytes]:
        self.reads[stream.partition("/")[0]] += 1
        return super().records(stream)

    def read_records(self, stream: str, position: int = 0) -> Iterator[tuple[int, bytes]]:
        yield from enumerate(super().records(stream)[position:], position + 1)
        self.reads[stream.partition("/")[0]] += 1


def run(store: MemoryStore) -> tuple[RunReader, RunWriter]:
    reader = RunReader(store)
    writer = RunWriter(ShardedStore(store), reader)
    writer.prepare({"steps": 4}, overwrite=False)
    store.put("images/k.png", b"image")
    manifest = writer.manifest()
    manifest.append(record())
    manifest.append(record(key="gone", file="images/gone.png"))
    writer.scores().append(ScoreLine("k", {"psnr": 20.0, "ssim": None}, errors={"ssim": "failed"}))
    writer.write_summary({"status": "complete"})
    return reader, writer


def test_written_values_are_read_back() -> None:
    reader, _ = run(MemoryStore())
    assert sorted(reader.records()) == ["gone", "k"]
    assert sorted(reader.outcomes()) == ["k"], "an image that is gone counts as never made"
    assert reader.scores() == {"k": {"psnr": 20.0, "ssim": None}}
    assert reader.score_details()["k"]["ssim"].error == "failed"
    assert reader.summary() == {"version": 1, "status": "complete"}
    assert reader.image("images/k.png") == b"image"
    assert len(reader.fingerprint()) == 16


def test_records_are_read_once_until_a_refresh() -> None:
    store = CountingStore()
    reader, writer = run(store)
    for _ in range(3):
        reader.outcomes()
        reader.lenient().records()
        reader.scores()
    assert store.reads == {"manifest": 1, "scores": 1}
    writer.manifest().append(record(key="new", status="failed", file=None))
    assert "new" not in reader.outcomes()
    reader.refresh_records()
    assert "new" in reader.outcomes()


@pytest.mark.parametrize(
    ("stream", "read", "note"),
    [
        ("scores/x.jsonl", lambda reader: reader.scores(), "1 damaged line of scores left out."),
        (
            "events/rank-0-x.jsonl",
            lambda reader: reader.events(json.loads),
            "1 damaged line of events left out.",
        ),
    ],
)
def test_a_damaged_line_is_an_error_or_left_out(
    stream: str, read: Any, note: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = MemoryStore()
    reader, _ = run(store)
    store.append_record(stream, b"nonsense")
    if stream.startswith("manifest"):
        with pytest.raises(StorageError, match=f"{stream}, line 1"):
            read(reader)
    else:
        store.append_record(stream, b"[" * 100_000)
        for _ in range(3):
            read(reader)
        (reported,) = capsys.readouterr().err.splitlines()
        assert f"{stream}, line 1" in reported
        assert reported.endswith("(and 1 more of this file); left out")
        note = note.replace("1 damaged line", "2 damaged lines")
    lenient = reader.lenient()
    assert read(lenient) is not None
    assert lenient.notes == [note]
    assert reader.notes == []
    assert lenient.records().keys() == {"k", "gone"}


@pytest.mark.parametrize(
    ("key", "read"),
    [
        ("summary.json", lambda reader: reader.summary()),
        ("config.yaml", lambda reader: reader.config_values()),
        ("overrides.yaml", lambda reader: reader.overrides()),
    ],
)
def test_a_damaged_file_is_an_error_or_a_note(key: str, read: Any) -> None:
    store = MemoryStore()
    reader, _ = run(store)
    store.put(key, b"{")
    with pytest.raises(StorageError, match=f"{key} is damaged"):
        read(reader)
    lenient = reader.lenient()
    assert not read(lenient)
    assert lenient.notes[0].startswith(f"{key} cannot be read")


def test_a_directory_that_is_not_a_run_is_refused() -> None:
    reader = RunReader(MemoryStore())
    assert not reader.is_run()
    with pytest.raises(StorageError, match=r"is not the directory of a run: it has no config\.yaml"):
        reader.config()
    with pytest.raises(StorageError, match=r"is not the directory of a run: it has no fingerprint\.json"):
        reader.fingerprint()


def test_the_store_of_another_config_is_not_touched() -> None:
    store = MemoryStore()
    _, writer = run(store)
    with pytest.raises(StorageError, match="another config"):
        writer.prepare({"steps": 8}, overwrite=False)
    writer.prepare({"steps": 8}, overwrite=True)
    assert list(store.list("")) == ["fingerprint.json"]


class UnreadableStore(MemoryStore):
    """Fails to read a file, like a disk with bad blocks or a file without permission."""

    def get(self, key: str) -> bytes | None:
        if key in ("summary.json", "config.yaml"):
            raise OSError("bad block")
        return super().get(key)

    def read_records(self, stream: str, position: int = 0) -> Iterator[tuple[int, bytes]]:
        raise OSError("bad block")


def test_unreadable_files_count_as_damage() -> None:
    store = UnreadableStore()
    reader, _ = run(store)
    for read in (reader.summary, reader.config_values, reader.records):
        with pytest.raises(StorageError, match="bad block"):
            read()
    lenient = reader.lenient()
    assert (lenient.summary(), lenient.config_values(), dict(lenient.records())) == (None, {}, {})
    assert len(lenient.notes) == 3
