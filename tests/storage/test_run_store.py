"""What every store must do. Add a new implementation to `STORES`."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxexp.address import Address
from fluxexp.errors import StorageError
from fluxexp.storage.atomic import TEMPORARY_PREFIX
from fluxexp.storage.local_store import LocalStore
from fluxexp.storage.object_access import open_object_store
from fluxexp.storage.object_store import ObjectStore
from fluxexp.storage.run_store import RunStore
from tests.storage.memory_store import MemoryStore


def new_local_store() -> LocalStore:
    return LocalStore(Path(tempfile.mkdtemp()))


def new_object_store() -> ObjectStore:
    pytest.importorskip("obstore")
    return open_object_store(Address.of(f"memory://bucket/{uuid.uuid4().hex}/run"))


STORES: list[Callable[[], RunStore]] = [new_local_store, MemoryStore, new_object_store]
any_store = pytest.mark.parametrize("new_store", STORES)
keys = st.sampled_from(["a.json", "b.json", "images/a.png", "images/b.png", "scores/features/x/a.npz"])
streams = st.sampled_from(["manifest/one.jsonl", "manifest/two.jsonl", "scores/one.jsonl"])
lines = st.binary(max_size=40).filter(lambda data: b"\n" not in data)


@any_store
@given(writes=st.lists(st.tuples(keys, st.binary(max_size=100))))
def test_a_key_has_the_content_of_its_last_write(
    new_store: Callable[[], RunStore], writes: list[tuple[str, bytes]]
) -> None:
    store, expected = new_store(), dict(writes)
    for key, data in writes:
        store.put(key, data)
    for key in ("a.json", "b.json", "images/a.png", "images/b.png", "scores/features/x/a.npz"):
        assert store.get(key) == expected.get(key)
        assert store.exists(key) == (key in expected)
    assert store.is_empty() == (not writes)


@any_store
@given(written=st.sets(keys))
def test_list_names_the_keys_of_one_folder_in_order(new_store: Callable[[], RunStore], written: set[str]) -> None:
    store = new_store()
    for key in written:
        store.put(key, b"")
    for folder in ("", "images/", "scores/", "scores/features/x/", "nowhere/"):
        expected = sorted(key for key in written if key.rpartition("/")[0] == folder.rstrip("/"))
        assert list(store.list(folder)) == expected


@any_store
@given(appends=st.lists(st.tuples(streams, lines)))
def test_records_come_back_in_the_order_of_their_appends(
    new_store: Callable[[], RunStore], appends: list[tuple[str, bytes]]
) -> None:
    store = new_store()
    for stream, line in appends:
        store.append_record(stream, line)
    for stream in {stream for stream, _ in appends} | {"manifest/nothing.jsonl"}:
        assert store.records(stream) == [line for other, line in appends if other == stream]
    listed = {*store.list("manifest/"), *store.list("scores/")}
    assert listed == {stream for stream, _ in appends}


@any_store
@given(before=st.lists(lines), after=st.lists(lines))
def test_reading_continues_where_it_ended(
    new_store: Callable[[], RunStore], before: list[bytes], after: list[bytes]
) -> None:
    store, stream = new_store(), "manifest/one.jsonl"
    found: list[tuple[int, bytes]] = []
    for part in ([b"first", *before], after):
        for line in part:
            store.append_record(stream, line)
        found += store.read_records(stream, found[-1][0] if found else 0)
    assert [line for _, line in found] == [b"first", *before, *after]
    starts = [0, *(end for end, _ in found[:-1])]
    assert list(store.records_at(stream, starts[::-1])) == [line for _, line in found][::-1]


@any_store
def test_sizes_are_those_of_the_files_of_one_folder(new_store: Callable[[], RunStore]) -> None:
    store = new_store()
    assert list(store.sizes("images/")) == []
    for key, size in (("images/a.png", 0), ("images/b.png", 3), ("images/x/c.png", 5), ("a.json", 7)):
        store.put(key, bytes(size))
    assert dict(store.sizes("images/")) == {"a.png": 0, "b.png": 3}


@any_store
def test_put_if_absent_writes_once(new_store: Callable[[], RunStore]) -> None:
    store = new_store()
    assert store.put_if_absent("a.json", b"first")
    assert not store.put_if_absent("a.json", b"second")
    assert store.get("a.json") == b"first"
    assert list(store.list("")) == ["a.json"]


@any_store
def test_delete_and_clear(new_store: Callable[[], RunStore]) -> None:
    store = new_store()
    for key in ("a.json", "images/a.png", "last.json"):
        store.put(key, b"x")
    store.append_record("manifest/one.jsonl", b"x")
    store.delete("a.json")
    store.delete("nothing")
    assert not store.exists("a.json")
    store.clear(last="last.json")
    assert store.is_empty()
    assert store.records("manifest/one.jsonl") == []


@any_store
def test_later_writes_have_later_times(new_store: Callable[[], RunStore]) -> None:
    store = new_store()
    store.append_record("scores/one.jsonl", b"x")
    store.append_record("scores/two.jsonl", b"x")
    assert store.modified_ns("scores/one.jsonl") <= store.modified_ns("scores/two.jsonl")


@any_store
def test_a_second_claim_is_refused_until_the_first_ends(new_store: Callable[[], RunStore]) -> None:
    store = new_store()
    with store.claim():
        with pytest.raises(StorageError, match="in use by another session"), store.claim():
            pass
        assert store.is_empty(), "a claim is not content"
        with pytest.raises(StorageError, match="in use by another session"):
            store.require_usable()
    store.require_usable()
    with store.claim():
        pass


def test_asking_whether_a_directory_is_usable_makes_nothing(tmp_path: Path) -> None:
    LocalStore(tmp_path / "new" / "run").require_usable()
    assert LocalStore(tmp_path / "new" / "run").is_empty()
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="is not a directory that can be written"):
        LocalStore(tmp_path / "file" / "run").require_usable()


def test_the_local_store_hides_temporary_files_and_removes_them(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("images/a.png", b"x")
    for folder in (tmp_path, tmp_path / "images"):
        (folder / f"{TEMPORARY_PREFIX}0").write_bytes(b"half")
    assert list(store.list("")) == []
    assert list(store.list("images/")) == ["images/a.png"]
    store.remove_partial_files()
    assert not list(tmp_path.rglob(f"{TEMPORARY_PREFIX}*"))
    assert store.get("images/a.png") == b"x"


@given(st.lists(lines, min_size=1, max_size=4), st.integers(1, 200))
def test_an_incomplete_record_is_not_read(written: list[bytes], cut: int) -> None:
    store = new_local_store()
    for line in written:
        store.append_record("manifest/one.jsonl", line)
    file = store.path / "manifest" / "one.jsonl"
    content = file.read_bytes()
    file.write_bytes(content[: max(0, len(content) - cut)])
    whole = store.records("manifest/one.jsonl")
    assert whole == written[: len(whole)]
    assert len(whole) < len(written)


def test_a_failed_write_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)
    store.put("a.json", b"old")
    store.append_record("manifest/one.jsonl", b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    real_write = os.write
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        store.put("a.json", b"new")
    monkeypatch.setattr(os, "write", lambda fd, data: real_write(fd, data[:2]) if len(data) > 3 else fail())
    with pytest.raises(OSError, match="disk full"):
        store.append_record("manifest/one.jsonl", b"new")
    assert store.get("a.json") == b"old"
    assert store.records("manifest/one.jsonl") == [b"old"]
    assert (tmp_path / "manifest" / "one.jsonl").read_bytes() == b"old\n"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.json", "manifest"]
