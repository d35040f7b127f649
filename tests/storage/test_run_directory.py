from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fluxexp.errors import StorageError
from fluxexp.storage.manifest import ManifestWriter
from fluxexp.storage.run_directory import RunDirectory
from tests.storage.test_manifest import record

MINE = {"steps": 4}


def directory_with_results(path: Path) -> RunDirectory:
    path.mkdir()
    directory = RunDirectory(path)
    directory.prepare(MINE, overwrite=False)
    (directory.images / "k.png").write_bytes(b"image")
    with ManifestWriter(directory.manifest) as manifest:
        manifest.append(record())
        manifest.append(record(key="gone", file="images/gone.png"))
        manifest.append(record(key="bad", status="failed", file=None))
    directory.write_summary({"status": "complete"})
    return directory


def test_an_image_that_is_gone_counts_as_never_made(tmp_path: Path) -> None:
    assert sorted(directory_with_results(tmp_path / "run").outcomes()) == ["bad", "k"]


def test_preparing_again_keeps_results_and_clears_what_a_killed_run_left(tmp_path: Path) -> None:
    directory = directory_with_results(tmp_path / "run")
    (directory.images / ".partial-0").write_bytes(b"half")
    directory.prepare(MINE, overwrite=False)
    assert [file.name for file in directory.images.iterdir()] == ["k.png"]
    assert "k" in directory.outcomes()


def test_a_summary_says_that_a_run_came_to_its_end(tmp_path: Path) -> None:
    directory = directory_with_results(tmp_path / "run")
    summary = directory.read_summary()
    assert summary is not None
    assert summary["status"] == "complete"
    directory.reopen()
    assert directory.read_summary() is None


def test_another_configs_directory_is_left_alone(tmp_path: Path) -> None:
    directory = directory_with_results(tmp_path / "run")
    with pytest.raises(StorageError, match="another config"):
        directory.prepare({"steps": 8}, overwrite=False)
    assert directory.summary.exists()


def test_overwrite_starts_afresh(tmp_path: Path) -> None:
    directory = directory_with_results(tmp_path / "run")
    directory.prepare(MINE, overwrite=True)
    assert directory.outcomes() == {}
    assert list(directory.images.iterdir()) == []


def test_overwrite_never_deletes_what_fluxexp_did_not_make(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StorageError):
        RunDirectory(tmp_path).prepare(MINE, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be used"), RunDirectory(tmp_path / "file" / "run").claimed():
        pass


def test_two_sessions_at_once_are_refused(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    with directory.claimed(), pytest.raises(StorageError, match="in use by another session"), directory.claimed():
        pass
    with directory.claimed():
        pass


def test_a_directory_cut_short_at_its_making_or_clearing_can_be_used_again(tmp_path: Path) -> None:
    path = tmp_path / "run"
    directory = directory_with_results(path)
    removed: list[str] = []
    for entry in directory._content()[:-1]:
        removed.append(entry.name)
    assert "fingerprint.json" not in removed, "the fingerprint goes last"
    (path / ".lock").touch()
    for name in ("images", "manifest", "events"):
        shutil.rmtree(path / name)
    directory.prepare(MINE, overwrite=False)
    assert directory.images.is_dir()


def test_a_damaged_fingerprint_is_named_and_can_be_overwritten(tmp_path: Path) -> None:
    directory = directory_with_results(tmp_path / "run")
    directory.fingerprint.write_text("{")
    with pytest.raises(StorageError, match=r"fingerprint\.json is damaged"):
        directory.prepare(MINE, overwrite=False)
    directory.prepare(MINE, overwrite=True)
    assert directory.outcomes() == {}
