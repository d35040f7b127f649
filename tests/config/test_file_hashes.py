"""Whole files are hashed, once per machine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fluxexp.config import RunConfig, file_hashes, fingerprint
from fluxexp.config.file_hashes import LARGE_BYTES, FileHashes, Stamp, file_content, unread_bytes
from fluxexp.data.file_content import files_content
from fluxexp.metrics.full.metric_weights import weights_identity
from fluxexp.models.text.text_cache import text_identity

Compose = Callable[..., RunConfig]
MIDDLE = LARGE_BYTES // 2


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the user, and nothing in memory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    forget()
    return tmp_path / "cache" / "fluxexp" / "hashes"


def forget() -> None:
    """Forget what is in memory, as in a new process."""
    file_hashes.file_hash._folders.clear()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read."""
    read: list[str] = []

    original = FileHashes._read

    def noted(hashes: FileHashes, real: str, stamp: Stamp) -> str:
        read.append(real)
        return original(hashes, real, stamp)

    monkeypatch.setattr(FileHashes, "_read", noted)
    return read


def large_file(path: Path, middle: bytes = b"\0") -> Path:
    """A file that is too large to be read at each start, with `middle` in its middle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        stream.truncate(LARGE_BYTES + 1000)
        stream.seek(MIDDLE)
        stream.write(middle)
    os.utime(path, (1e9, 1e9))  # a file that changed just now is read again
    return path


def in_a_new_process(file: Path) -> str:
    forget()
    return file_content(file)


def test_files_that_differ_in_the_middle_differ(tmp_path: Path) -> None:
    one, other = large_file(tmp_path / "a"), large_file(tmp_path / "b", b"\1")
    assert file_content(one) == f"{LARGE_BYTES + 1000}-{hashlib.sha256(one.read_bytes()).hexdigest()}"
    assert file_content(one) != file_content(other)
    assert weights_identity(one) != weights_identity(other)


def test_models_that_differ_in_the_middle_share_nothing(compose: Compose, tmp_path: Path) -> None:
    configs = []
    for name, middle in (("a", b"\0"), ("b", b"\1")):
        for part in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer"):
            (tmp_path / name / part).mkdir(parents=True)
        for part in ("text_encoder_2", "transformer"):
            large_file(tmp_path / name / part / "model.safetensors", middle)
        configs.append(compose(f"model.path={tmp_path / name}"))
    one, other = configs
    assert fingerprint(one) != fingerprint(other)
    assert text_identity(one.model) != text_identity(other.model)  # type: ignore[arg-type]


def test_a_large_file_is_read_once(tmp_path: Path, reads: list[str]) -> None:
    file = large_file(tmp_path / "a")
    assert unread_bytes([file]) == LARGE_BYTES + 1000
    first = file_content(file)
    assert in_a_new_process(file) == first
    assert reads == [str(file)]
    assert unread_bytes([file]) == 0
    os.utime(file, (1, 1))
    assert in_a_new_process(file) == first
    assert len(reads) == 2, "it may have changed"


def test_ranks_that_ask_at_once_read_it_once(tmp_path: Path, reads: list[str]) -> None:
    file = large_file(tmp_path / "a")
    ranks = [FileHashes() for _ in range(8)]  # each rank has its own memory
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda rank: rank(file), ranks))) == 1
    assert len(reads) == 1


@pytest.mark.parametrize(
    "damage", [b"", b"0123", b'["a",1,2', b"\xff" * 65, b'["a",16778216,1,1000000000000000000,"aa"]\n', b"[]\n{}\n1\n"]
)
def test_a_damaged_cache_is_made_again(tmp_path: Path, cache: Path, reads: list[str], damage: bytes) -> None:
    file = large_file(tmp_path / "a")
    first = file_content(file)
    (stored,) = [entry for entry in cache.iterdir() if entry.suffix != ".lock"]
    stored.write_bytes(damage)
    assert in_a_new_process(file) == first
    assert in_a_new_process(file) == first
    assert len(reads) == 2


def test_a_cache_that_cannot_be_written_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    file = large_file(tmp_path / "a")
    assert file_content(file) == in_a_new_process(file)
    assert len(reads) == 2


def test_small_files_keep_their_identity(tmp_path: Path) -> None:
    """Version 0.1 identified them in the same way, so old runs can be continued."""
    small = tmp_path / "small"
    small.write_bytes(b"weights")
    assert file_content(small) == f"7-{hashlib.sha256(b'weights').hexdigest()}"


def test_a_small_file_is_read_once_and_again_after_a_change(tmp_path: Path, reads: list[str]) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    os.utime(file, (1e9, 1e9))
    first = file_content(file)
    assert in_a_new_process(file) == first
    assert len(reads) == 1
    file.write_bytes(b"two")
    os.utime(file, (1e9 + 1, 1e9 + 1))
    assert in_a_new_process(file) != first


def test_a_file_that_changed_just_now_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    stamp = file.stat().st_mtime_ns
    first = file_content(file)
    file.write_bytes(b"two")
    os.utime(file, ns=(stamp, stamp))
    assert file_content(file) != first, "the clock of the file system is too coarse to show the change"


def test_content_that_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    assert files_content([None, tmp_path / "missing.png"]) is None
    assert files_content([None]) is not None


def test_the_copy_of_all_weights_in_one_file_is_not_read(compose: Compose, tmp_path: Path, reads: list[str]) -> None:
    """The repository of FLUX.1 has the transformer twice: diffusers does not load the file beside the components."""
    for part in ("transformer", "vae"):
        (tmp_path / "m" / part).mkdir(parents=True)
    loaded = tmp_path / "m" / "transformer" / "model.safetensors"
    loaded.write_bytes(b"weights")
    os.utime(loaded, (1e9, 1e9))
    asked = compose(f"model.path={tmp_path / 'm'}")
    before = fingerprint(asked)
    large_file(tmp_path / "m" / "flux1-fill-dev.safetensors")
    assert fingerprint(asked) == before
    assert len(reads) == 1
