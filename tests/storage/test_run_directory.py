from __future__ import annotations

from pathlib import Path

import pytest

from fluxexp.address import Address
from fluxexp.errors import StorageError
from fluxexp.storage.run_directory import RunDirectory
from tests.storage.test_manifest import record

MINE = {"steps": 4}


def directory_with_results(path: Path) -> RunDirectory:
    path.mkdir()
    directory = RunDirectory(Address.of(path))
    directory.writer.prepare(MINE, overwrite=False)
    directory.store.put("images/k.png", b"image")
    manifest = directory.writer.manifest()
    manifest.append(record())
    manifest.append(record(key="gone", file="images/gone.png"))
    manifest.append(record(key="bad", status="failed", file=None))
    directory.writer.write_summary({"status": "complete"})
    return directory


def test_a_task_without_its_image_counts_as_not_done(tmp_path: Path) -> None:
    assert sorted(directory_with_results(tmp_path / "run").reader.outcomes()) == ["bad", "k"]


def test_prepare_keeps_results_and_removes_partial_files(tmp_path: Path) -> None:
    directory = directory_with_results(tmp_path / "run")
    ((directory.local_directory() / "images") / ".partial-0").write_bytes(b"half")
    directory.writer.prepare(MINE, overwrite=False)
    assert [file.name for file in (directory.local_directory() / "images").iterdir()] == ["k.png"]
    assert "k" in directory.reader.outcomes()


def test_a_summary_says_that_a_run_ended(tmp_path: Path) -> None:
    directory = directory_with_results(tmp_path / "run")
    summary = directory.reader.summary()
    assert summary is not None
    assert summary["status"] == "complete"
    directory.writer.reopen()
    assert directory.reader.summary() is None


def test_the_directory_of_another_config_is_not_touched(tmp_path: Path) -> None:
    directory = directory_with_results(tmp_path / "run")
    with pytest.raises(StorageError, match="another config"):
        directory.writer.prepare({"steps": 8}, overwrite=False)
    assert directory.reader.summary()


def test_overwrite_starts_again(tmp_path: Path) -> None:
    directory = directory_with_results(tmp_path / "run")
    directory.writer.prepare(MINE, overwrite=True)
    assert directory.reader.outcomes() == {}
    assert [entry.name for entry in directory.local_directory().iterdir()] == ["fingerprint.json"]


def test_overwrite_never_deletes_what_fluxexp_did_not_make(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StorageError):
        RunDirectory(Address.of(tmp_path)).writer.prepare(MINE, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_the_error_names_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    directory = RunDirectory(Address.of(tmp_path / "file" / "run"))
    with pytest.raises(StorageError, match="cannot be used"), directory.claimed():
        pass


def test_a_second_session_is_refused(tmp_path: Path) -> None:
    directory = RunDirectory(Address.of(tmp_path / "run"))
    with directory.claimed(), pytest.raises(StorageError, match="in use by another session"), directory.claimed():
        pass
    with directory.claimed():
        pass


def test_an_interrupted_clear_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = directory_with_results(tmp_path / "run")
    unlink = Path.unlink

    def die_at_summary(self: Path, missing_ok: bool = False) -> None:
        if self.name == "summary.json":
            raise OSError("killed")
        unlink(self, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", die_at_summary)
        with pytest.raises(StorageError, match="killed"):
            directory.writer.prepare(MINE, overwrite=True)
    assert (directory.local_directory() / "fingerprint.json").exists(), "the fingerprint goes last"
    directory.writer.prepare(MINE, overwrite=True)
    assert directory.reader.outcomes() == {}


def test_a_damaged_fingerprint_is_named_and_can_be_overwritten(tmp_path: Path) -> None:
    directory = directory_with_results(tmp_path / "run")
    (directory.local_directory() / "fingerprint.json").write_text("{")
    with pytest.raises(StorageError, match=r"fingerprint\.json is damaged"):
        directory.writer.prepare(MINE, overwrite=False)
    directory.writer.prepare(MINE, overwrite=True)
    assert directory.reader.outcomes() == {}
