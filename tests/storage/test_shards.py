"""Images and records in shards, in every kind of store."""

from __future__ import annotations

import gc
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import webdataset

from fluxexp.storage.local_store import LocalStore
from fluxexp.storage.manifest import read_attempts
from fluxexp.storage.run_reader import RunReader
from fluxexp.storage.run_store import RunStore
from fluxexp.storage.shard_writer import LONGEST_S, ShardWriter
from fluxexp.storage.sharded_store import ShardedStore
from tests.storage.test_manifest import record
from tests.storage.test_run_store import STORES

any_store = pytest.mark.parametrize("new_store", STORES)


def add(writer: ShardWriter, key: str, data: bytes, attempt: int = 1) -> None:
    writer.append(replace(record(key=key, file=f"images/{key}.png"), bytes=len(data), attempt=attempt), data)


@any_store
def test_images_and_records_of_a_closed_shard_are_read_by_other_processes(new_store: Callable[[], RunStore]) -> None:
    store = new_store()
    mine, other = ShardedStore(store), ShardedStore(store)
    writer = mine.shard_writer(1 << 20)
    content = {f"k{number}": bytes([number]) * (600 * number) for number in range(5)}
    assert not other.exists("images/k1.png")
    for key, data in content.items():
        add(writer, key, data)
    assert mine.get("images/k3.png") == content["k3"], "the process that writes sees its images at once"
    assert other.get("images/k3.png") is None
    assert not dict(other.sizes("images/"))
    writer.flush()
    for each in (mine, other, ShardedStore(store)):
        assert {key: each.get(f"images/{key}.png") for key in content} == content
        assert each.get_range("images/k2.png", 2, 9) == content["k2"][2:9]
        assert each.exists("images/k4.png")
        assert not each.exists("images/k5.png")
        assert dict(each.sizes("images/")) == {f"{key}.png": len(data) for key, data in content.items()}
        assert [one.key for one in read_attempts(each).values] == list(content)
        assert sorted(RunReader(each).outcomes()) == list(content)


@any_store
def test_a_shard_without_its_part_does_not_count_and_is_removed(new_store: Callable[[], RunStore]) -> None:
    store = new_store()
    writer = ShardedStore(store).shard_writer(1)
    add(writer, "a", b"image")
    add(writer, "b", b"image")
    (part, *_) = [name for name, _ in store.sizes("shards/") if name.endswith(".parquet")]
    store.delete(f"shards/{part}")
    reader = RunReader(ShardedStore(store))
    assert len(reader.outcomes()) == 1
    ShardedStore(store).remove_partial_files()
    assert len(dict(store.sizes("shards/"))) == 2


@pytest.mark.parametrize("damage", [b"", b"PAR1", None])
def test_a_damaged_shard_counts_as_not_made(tmp_path: Path, damage: bytes | None) -> None:
    store = LocalStore(tmp_path)
    writer = ShardedStore(store).shard_writer(1)
    add(writer, "a", b"image")
    add(writer, "b", b"image")
    names = sorted(name for name, _ in store.sizes("shards/"))
    if damage is None:
        (tmp_path / "shards" / names[1]).write_bytes(b"short")
    else:
        (tmp_path / "shards" / names[0]).write_bytes(damage)
    assert len(RunReader(ShardedStore(store)).outcomes()) == 1


def test_the_latest_attempt_counts_whatever_the_order(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for attempt in (2, 1, 3, 2):
        writer = ShardedStore(store).shard_writer(1)
        add(writer, "a", b"x" * attempt, attempt)
    reader = RunReader(ShardedStore(store))
    assert reader.outcomes()["a"].attempt == 3
    assert reader.image("images/a.png") == b"xxx"
    assert dict(reader.store.sizes("images/")) == {"a.png": 3}


def test_shards_are_closed_by_size_and_by_time(tmp_path: Path) -> None:
    now = [0.0]
    store = ShardedStore(LocalStore(tmp_path))
    writer = ShardWriter(LocalStore(tmp_path), store._shards, 5000, clock=lambda: now[0])
    for key in "abc":
        add(writer, key, bytes(1000))
    assert len(list((tmp_path / "shards").glob("*.tar"))) == 1
    with tarfile.open(next((tmp_path / "shards").glob("*.tar"))) as tar:
        assert tar.getnames() == [f"{key}.{suffix}" for key in "ab" for suffix in ("png", "json")]
    now[0] = LONGEST_S
    add(writer, "d", bytes(10))
    assert len(list((tmp_path / "shards").glob("*.tar"))) == 2


def test_the_name_of_a_shard_depends_only_on_its_content(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        add(ShardedStore(LocalStore(tmp_path / folder)).shard_writer(1), "k", b"image")
    names = [sorted(file.name for file in (tmp_path / folder / "shards").iterdir()) for folder in ("a", "b")]
    assert names[0] == names[1]


def test_a_shard_that_could_not_be_put_is_put_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)
    writer = ShardedStore(store).shard_writer(1)
    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "put_file", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(OSError, match="No space"):
            add(writer, "a", b"first")
    add(writer, "b", b"second")
    assert sorted(RunReader(ShardedStore(store)).outcomes()) == ["a", "b"]
    assert not list(tmp_path.glob(".partial-*"))


def test_many_images_are_found_after_the_index_was_sorted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxexp.storage.shard_index._MOST_RECENT", 7)
    store = ShardedStore(LocalStore(tmp_path))
    writer = store.shard_writer(4000)
    for number in range(60):
        add(writer, f"k{number % 50}", b"%d" % number, attempt=1 + number // 50)
    writer.flush()
    for each in (store, ShardedStore(LocalStore(tmp_path))):
        expected = {f"images/k{n}.png": b"%d" % (n + 50 if n < 10 else n) for n in range(50)}
        assert {key: each.get(key) for key in expected} == expected
        assert len(dict(each.sizes("images/"))) == len(list(each.sizes("images/"))) == 50


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_and_parquet_open_what_is_written(tmp_path: Path) -> None:
    writer = ShardedStore(LocalStore(tmp_path)).shard_writer(1 << 20)
    add(writer, "one-0", b"image 1")
    add(writer, "two-0", b"image 2")
    writer.flush()
    (tar,) = (tmp_path / "shards").glob("*.tar")
    found = list(webdataset.WebDataset(str(tar), shardshuffle=False))
    assert [(each["__key__"], each["png"]) for each in found] == [("one-0", b"image 1"), ("two-0", b"image 2")]
    assert b'"sample_key"' in found[0]["json"]
    gc.collect()  # webdataset leaves its file open
    table = pq.read_table(tar.with_suffix(".parquet"))
    with tar.open("rb") as file:
        for row in table.to_pylist():
            file.seek(row["offset"])
            assert file.read(row["bytes"]) == {"one-0": b"image 1", "two-0": b"image 2"}[row["key"]]
