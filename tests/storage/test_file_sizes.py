"""A large folder is listed by another process, with the same result."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluxexp.storage import file_sizes
from fluxexp.storage.atomic import TEMPORARY_PREFIX
from fluxexp.storage.local_store import LocalStore
from fluxexp.storage.retrying_store import RetryingStore

NAMES = {"a.png": 0, "ü.png": 3, "two\nlines 1.png": 4, os.fsdecode(b"\xff.png"): 5, ".hidden": 1, " ": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "run" / "images"
    (images / "subfolder").mkdir(parents=True)
    for name, size in NAMES.items():
        (images / name).write_bytes(bytes(size))
    (images / f"{TEMPORARY_PREFIX}1").write_bytes(b"half")
    (images / "link.png").symlink_to("a.png")
    (images / "broken.png").symlink_to("nothing")
    (tmp_path / "outside.png").write_bytes(b"secret")
    (images / "outside.png").symlink_to(tmp_path / "outside.png")
    os.mkfifo(images / "fifo.png")
    return images


def sizes(folder: Path) -> Iterator[tuple[str, int]]:
    return RetryingStore(LocalStore(folder.parent), 0).sizes("images/")


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the other process listed the folder, for each attempt. All folders count as large."""
    found: list[bool] = []
    read = file_sizes.LargeFolder.sizes

    def counted(self: file_sizes.LargeFolder) -> Iterator[tuple[str, int]] | None:
        result = read(self)
        found.append(result is not None)
        return result

    monkeypatch.setattr(file_sizes, "_LARGE_FOLDER_BYTES", 0)
    monkeypatch.setattr(file_sizes.LargeFolder, "sizes", counted)
    return found


def test_both_ways_list_the_same(folder: Path, listings: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_sizes, "_PART_BYTES", 7)  # so that parts end everywhere
    expected = NAMES | {"link.png": 0}
    assert dict(sizes(folder)) == expected
    assert listings == [True]
    monkeypatch.setattr(file_sizes, "_LARGE_FOLDER_BYTES", 1 << 40)
    assert dict(sizes(folder)) == expected
    assert listings == [True]


def test_the_other_process_begins_at_the_call(folder: Path, listings: list[bool]) -> None:
    begun = sizes(folder)
    del begun  # ends the process
    assert listings == []
    begun = sizes(folder)
    for image in folder.glob("*.png"):
        image.unlink()
    assert set(dict(begun)) <= {*NAMES, "link.png"}
    assert listings == [True]


@pytest.mark.parametrize("program", ["/bin/false", "/nonexistent/python", ""])
def test_a_failed_process_costs_only_time(
    folder: Path, listings: list[bool], monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr(sys, "executable", program)
    assert dict(sizes(folder)) == NAMES | {"link.png": 0}
    assert True not in listings


def test_a_killed_process_costs_only_time(folder: Path, listings: list[bool]) -> None:
    store = LocalStore(folder.parent)
    with store._opened("images/") as fd:
        large = file_sizes.LargeFolder.start(fd)
    assert large is not None
    large._process.kill()
    assert dict(store._sizes("images/", large)) == NAMES | {"link.png": 0}
    assert listings in ([False], [True])  # it may have ended before


def test_a_missing_folder_has_no_files(tmp_path: Path, listings: list[bool]) -> None:
    assert list(LocalStore(tmp_path).sizes("images/")) == []
    assert listings == []
