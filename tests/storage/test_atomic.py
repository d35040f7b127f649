from __future__ import annotations

from pathlib import Path

import pytest

from fluxexp.storage.atomic import TEMPORARY_PREFIX, remove_partial_files, write_atomically


def test_a_write_replaces_earlier_content(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_atomically(file, "one")
    write_atomically(file, b"two")
    assert file.read_text() == "two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_a_failed_write_keeps_the_old_file_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_atomically(file, "one")
    with pytest.raises(TypeError):
        write_atomically(file, 3)  # type: ignore[arg-type]
    assert file.read_text() == "one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_temporary_files_of_killed_processes_are_removed(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY_PREFIX}0123").write_bytes(b"half")
    (tmp_path / "whole.png").write_bytes(b"whole")
    assert remove_partial_files(tmp_path) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["whole.png"]
