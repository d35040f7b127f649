"""Links inside of a run's directory never lead out of it: nothing outside is read, changed or removed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fluxexp.errors import StorageError
from fluxexp.storage.local_store import LocalStore
from tests.program import FAKE, Program


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of someone else, with files that have the names of results."""
    folder = tmp_path / "outside"
    (folder / "images").mkdir(parents=True)
    for name in ("secret", ".partial-1", "images/k.png", "images/.partial-2"):
        (folder / name).write_text("precious")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    (tmp_path / "run").mkdir()
    return LocalStore(tmp_path / "run")


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_linked_folder_is_not_used(store: LocalStore, outside: Path) -> None:
    (store.path / "images").symlink_to(outside / "images")
    before = tree(outside)
    for use in (
        lambda: store.put("images/new.png", b"x"),
        lambda: store.put("images/k.png", b"x"),
        lambda: store.put("images/deeper/k.png", b"x"),
        lambda: store.put_if_absent("images/new.png", b"x"),
        lambda: store.append_record("images/s.jsonl", b"{}"),
        lambda: store.get("images/k.png"),
        lambda: store.delete("images/k.png"),
        lambda: store.modified_ns("images/k.png"),
        lambda: list(store.list("images/")),
    ):
        with pytest.raises(OSError, match="is a link that leads out of the run's directory"):
            use()
    assert not store.exists("images/k.png")
    store.remove_partial_files()
    assert tree(outside) == before


def test_a_linked_file_is_replaced_and_never_followed(store: LocalStore, outside: Path) -> None:
    (store.path / "images").mkdir()
    for name in ("images/k.png", "contact_sheet.png", "manifest.jsonl", "gone.png"):
        (store.path / name).symlink_to(outside / "secret")
    before = tree(outside)
    assert not store.exists("images/k.png")
    assert list(store.list("images/")) == []
    with pytest.raises(OSError, match="leads out"):
        store.get("contact_sheet.png")
    with pytest.raises(OSError, match="leads out"):
        store.append_record("manifest.jsonl", b"{}")
    store.put("images/k.png", b"image")
    store.put("contact_sheet.png", b"sheet")
    store.delete("gone.png")
    assert store.get("images/k.png") == b"image"
    assert store.get("contact_sheet.png") == b"sheet"
    assert not (store.path / "images/k.png").is_symlink()
    assert tree(outside) == before


@pytest.mark.parametrize("name", [".lock", "images", "manifest", "wandb", "report.html"])
def test_a_session_does_not_start_over_links(store: LocalStore, outside: Path, name: str) -> None:
    (store.path / name).symlink_to(outside / "absent" if name == ".lock" else outside)
    before = tree(outside)
    for use in (store.require_usable, store.claim().__enter__):
        with pytest.raises(StorageError, match=f"{name} is a link that leads out of the run's directory; remove it"):
            use()
    assert tree(outside) == before


def test_overwriting_removes_links_and_not_their_targets(store: LocalStore, outside: Path) -> None:
    (store.path / "images").symlink_to(outside / "images")
    (store.path / "scores").mkdir()
    (store.path / "scores" / "deep").symlink_to(outside)
    (store.path / "summary.json").symlink_to(outside / "secret")
    before = tree(outside)
    store.clear(last="fingerprint.json")
    assert list(store.path.iterdir()) == []
    assert tree(outside) == before


def test_a_key_never_leads_out_by_itself(store: LocalStore, outside: Path) -> None:
    for key in ("../outside/secret", str(outside / "secret"), "images/../../outside/secret"):
        with pytest.raises(OSError, match="is not a path inside"):
            store.get(key)
        with pytest.raises(OSError, match="is not a path inside"):
            store.put(key, b"x")


def test_a_fifo_in_the_place_of_a_file_is_an_error_and_no_endless_wait(store: LocalStore) -> None:
    (store.path / "images").mkdir()
    for name in ("summary.json", "images/k.png"):
        os.mkfifo(store.path / name)
        for read in (store.get, store.records, lambda key: list(store.read_records(key))):
            with pytest.raises(OSError, match="is not a regular file"):
                read(name)
        assert not store.exists(name)
    with pytest.raises(OSError, match="is not a regular file"):
        list(store.records_at("summary.json", [0]))
    store.put("summary.json", b"{}")
    assert store.get("summary.json") == b"{}"


def test_links_that_stay_inside_and_a_linked_root_work(store: LocalStore, tmp_path: Path) -> None:
    (store.path / "elsewhere").mkdir()
    (store.path / "images").symlink_to("elsewhere")
    (tmp_path / "linked").symlink_to(store.path)
    linked = LocalStore(tmp_path / "linked")
    linked.put("images/k.png", b"x")
    with linked.claim():
        assert store.get("images/k.png") == b"x"
        assert list(linked.list("images/")) == ["images/k.png"]


def test_the_program_writes_nothing_through_a_link(program: Program, outside: Path) -> None:
    """A real run whose directory was prepared by someone else."""
    command = (*FAKE, "dataset.limit=2", f"output.dir={program.cwd / 'outputs'}")
    done = program.run(*command)
    assert done.returncode == 0, done.stderr
    images = done.directory / "images"
    for file in images.iterdir():
        file.unlink()
    images.rmdir()
    images.symlink_to(outside / "images")
    before = tree(outside)
    refused = program.run(*command, "output.overwrite=true")
    assert refused.returncode != 0
    assert "images is a link that leads out of the run's directory" in refused.stderr
    assert tree(outside) == before
