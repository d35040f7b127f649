"""The run directory: what lies where, and who may use it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxexp.errors import StorageError
from fluxexp.records import RECORD_VERSION, Record
from fluxexp.storage.atomic import remove_partial_files, write_atomically
from fluxexp.storage.manifest import merge, read_attempts

_LOCK = ".lock"


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Paths inside one run's directory (docs/run-directory.md)."""

    path: Path

    @property
    def images(self) -> Path:
        """Finished images, `<task key>.<format>`."""
        return self.path / "images"

    @property
    def manifest(self) -> Path:
        """Append-only JSON lines, one per attempt at a task."""
        return self.path / "manifest"

    @property
    def events(self) -> Path:
        """Spans of every rank."""
        return self.path / "events"

    @property
    def scores(self) -> Path:
        """Append-only JSON lines, one for each scoring of an image."""
        return self.path / "scores"

    @property
    def summary(self) -> Path:
        """Written last: a run that has it came to its end."""
        return self.path / "summary.json"

    @property
    def fingerprint(self) -> Path:
        """What of the config changed pixels, and so named this directory."""
        return self.path / "fingerprint.json"

    @contextmanager
    def claimed(self) -> Generator[None]:
        """Hold the directory for one session; two at once would clear each other's files away.

        Raises:
            StorageError: another session holds it, or it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StorageError(f"{self.path} cannot be used: {error}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(f"{self.path} is in use by another session of this very run; wait for it") from None
        else:
            yield
        finally:
            os.close(lock)  # and with it the lock, as at any death of the process

    def prepare(self, fingerprint: Mapping[str, Any], overwrite: bool) -> None:
        """Make the directory, or check that it is this config's own and clear what a killed run left half-done.

        Only the process that has claimed it may call it, before any other uses the directory.

        Raises:
            StorageError: the directory belongs to another config, or cannot be written.
        """
        try:
            if not self._is_ours(fingerprint, overwrite):
                raise StorageError(
                    f"{self.path} was made by another config (see its fingerprint.json); its results are not mixed "
                    "with this run's: choose another output.dir or name"
                )
            if overwrite:
                self._clear()
            remove_partial_files(self.path)
            # First of all files, and last to go: a directory without it is not fluxexp's to touch.
            write_atomically(self.fingerprint, json.dumps(fingerprint, indent=2, sort_keys=True) + "\n")
            for directory in (self.images, self.manifest, self.events):
                directory.mkdir(parents=True, exist_ok=True)
            remove_partial_files(self.images)
        except OSError as error:
            raise StorageError(f"{self.path} cannot be used: {error}") from error

    def _is_ours(self, fingerprint: Mapping[str, Any], overwrite: bool) -> bool:
        if not self._content():
            return True
        if not self.fingerprint.is_file():
            return False  # never delete or mix into a directory that fluxexp did not make
        try:
            return overwrite or json.loads(self.fingerprint.read_text()) == dict(fingerprint)
        except ValueError as error:
            raise StorageError(
                f"{self.fingerprint} is damaged ({error}); output.overwrite=true starts afresh"
            ) from None

    def _content(self) -> list[Path]:
        """Everything in the directory but the lock, which is held meanwhile; the fingerprint comes last."""
        entries = [entry for entry in self.path.iterdir() if entry.name != _LOCK]
        return sorted(entries, key=lambda entry: entry == self.fingerprint)

    def _clear(self) -> None:
        for entry in self._content():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def outcomes(self) -> dict[str, Record]:
        """What became of each task so far. An `ok` record whose image is gone counts as never made."""
        present = {file.name for file in self.images.iterdir()} if self.images.is_dir() else set()
        return {
            key: record
            for key, record in merge(read_attempts(self.manifest)).items()
            if record.status != "ok" or (record.file is not None and Path(record.file).name in present)
        }

    def read_summary(self) -> dict[str, Any] | None:
        """What the last session that came to its end said; None where there was none."""
        try:
            summary: dict[str, Any] = json.loads(self.summary.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise StorageError(f"{self.summary} is damaged ({error}); remove it, it is made again") from error
        return summary

    def reopen(self) -> None:
        """Take back that the run came to its end: a session is about to add to it."""
        self.summary.unlink(missing_ok=True)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        content = {"version": RECORD_VERSION, **summary}
        try:
            write_atomically(self.summary, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise StorageError(f"{self.summary} cannot be written: {error}") from error
