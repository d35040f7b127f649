"""Reads a run back from its store. Every user of a run's results reads through here.

A strict reader raises StorageError for damage. `lenient()` leaves out what is damaged and adds a sentence to `notes`.
Damaged lines of the manifest are no error for either: their attempts count as not made. The manifest is read once and
indexed. A caller that knows that other processes wrote since then calls `refresh_records`.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import yaml

from fluxexp.config import RunConfig
from fluxexp.config.migrations import migrate, read_config
from fluxexp.errors import ConfigError, StorageError
from fluxexp.records import content_hash
from fluxexp.storage.feature_store import FeatureStore, SetScore, read_set_scores
from fluxexp.storage.manifest_index import Flags, ManifestIndex
from fluxexp.storage.record_lines import parse_streams
from fluxexp.storage.result_files import CONFIG, FINGERPRINT, IMAGES, OVERRIDES, SESSIONS, SUMMARY
from fluxexp.storage.result_reader import ResultReader
from fluxexp.storage.stored_records import StoredRecords
from fluxexp.storage.summary_shapes import SESSION_ENTRY
from fluxexp.storage.summary_shapes import SUMMARY as SUMMARY_SHAPE


class RunReader(ResultReader):
    """Reads one run."""

    def lenient(self) -> RunReader:
        """A lenient reader of the same run. It shares the cache of this reader and has its own notes."""
        return RunReader(self.store, is_lenient=True, cache=self.cache)

    def is_run(self) -> bool:
        """Whether the store contains a run."""
        return self.store.exists(CONFIG)

    def config_values(self) -> dict[str, Any]:
        """The config as plain values with the names of this version of fluxexp. Unknown keys stay.

        Raises:
            StorageError: it is missing or damaged; a lenient reader returns no values instead.
        """
        values = self._yaml(CONFIG)
        if values is None:
            if not self.is_lenient:
                raise StorageError(f"{self.store.address} is not the directory of a run: it has no {CONFIG}")
            return {}
        if not isinstance(values, dict):
            self.report_damage(CONFIG, ValueError("it is not a mapping"), "")
            return {}
        return migrate(values)

    def config(self) -> RunConfig:
        """The config with which the run was last started. Keys that are newer than the run have their defaults.

        Keys that this version does not know are ignored, and `notes` names them.

        Raises:
            StorageError: it is missing, damaged, or has values that this version cannot use.
        """
        try:
            config, notes = read_config(self.config_values())
        except ConfigError as error:
            raise StorageError(
                f"{self.store.address}/{CONFIG} has values that this version of fluxexp cannot use:\n{error}"
            ) from error
        self.notes += notes
        return config

    def fingerprint(self) -> str:
        """Hash of fingerprint.json. The names of the directory and of its tasks contain it.

        Raises:
            StorageError: the file is missing or damaged.
        """
        payload = self.read_json(FINGERPRINT, "")
        if payload is None:
            raise StorageError(f"{self.store.address} is not the directory of a run: it has no {FINGERPRINT}")
        return content_hash(payload)

    def overrides(self) -> list[str]:
        """The overrides on the command line. If the file is missing, they are empty, and there is a note.

        Raises:
            StorageError: the file is damaged; a lenient reader returns none instead.
        """
        values = self._yaml(OVERRIDES)
        if values is None:
            return []
        # Only scalars: the text of nested lists with aliases can be longer than any memory.
        if not isinstance(values, list) or not all(isinstance(value, str | int | float | None) for value in values):
            self.report_damage(OVERRIDES, ValueError("it is not a list of overrides"), "")
            return []
        return [str(value) for value in values]

    def manifest(self) -> ManifestIndex:
        """The index of the manifest. Damaged lines are left out: `ManifestIndex.damage` says which.

        Raises:
            StorageError: a part of the manifest cannot be read; a lenient reader adds a note instead.
        """
        cache = self.cache
        if cache.manifest is None or not cache.is_manifest_fresh:
            if cache.manifest is None or not cache.manifest.update():
                cache.manifest = ManifestIndex(self.store)
                cache.manifest.update()
            cache.is_manifest_fresh = True
        index = cache.manifest
        if index.unreadable and not self.is_lenient:
            cache.is_manifest_fresh = False  # it may be readable later
            raise StorageError(index.unreadable[0])
        if self.is_lenient:
            self._note(*index.unreadable, index.damage.sentence())
        return index

    def made(self) -> Flags:
        """For each row of the manifest, whether the attempt that counts succeeded and its complete image is there.

        Raises:
            StorageError: the manifest or the images cannot be read.
        """
        index = self.manifest()
        if self.cache.made is None or len(self.cache.made) != len(index):
            listing, self.cache.listing = self.cache.listing, None
            try:
                self.cache.made = index.find_images(self.store.sizes(IMAGES) if listing is None else listing)
            except OSError as error:
                raise StorageError(f"{self.store.address}/{IMAGES} cannot be read: {error}") from error
        return self.cache.made

    def begin_listing(self) -> None:
        """Begin to list the images, so that a store can do that while the manifest is read.

        Only while no process writes: an image that is written after this call may count as missing.
        """
        self.cache.listing = self.store.sizes(IMAGES)

    def records(self) -> StoredRecords:
        """The result of each task, by key, including `ok` records whose image is gone."""
        index = self.manifest()
        return StoredRecords(index, np.arange(len(index), dtype=np.int32))

    def outcomes(self) -> StoredRecords:
        """The result of each task, by key. An `ok` record whose image is gone or incomplete counts as never made."""
        index = self.manifest()
        rows = np.flatnonzero((index.column("is_ok") == 0) | self.made())
        return StoredRecords(index, rows.astype(np.int32))

    def refresh_records(self) -> None:
        """At the next use, read what was appended to the manifest and list the images: other processes wrote some."""
        self.cache.is_manifest_fresh = False
        self.cache.made = self.cache.listing = None

    def forget_records(self) -> None:
        """Read the manifest from its beginning at the next use."""
        self.cache.manifest = None
        self.refresh_records()

    def image(self, key: str) -> bytes | None:
        """The image file `key`, for example `images/k.png`, as `Record.file` names it."""
        return self.store.get(key)

    def read_image(self, key: str) -> bytes:
        """Like `image`, but raises FileNotFoundError if there is no such file."""
        content = self.image(key)
        if content is None:
            raise FileNotFoundError(f"{key} does not exist")
        return content

    def has_image(self, key: str) -> bool:
        """Whether the image file `key` exists."""
        return self.store.exists(key)

    def features(self, extractor: str) -> FeatureStore:
        """Features by the extractor of this name."""
        return FeatureStore(self.store, extractor)

    def set_scores(self) -> tuple[dict[str, SetScore], int]:
        """Distances between sets, and the number of images in them. A damaged file counts as none, and is reported."""
        try:
            return read_set_scores(self.store)
        except StorageError as error:
            self.skip([str(error)], "set scores")
            return {}, 0

    def summary(self) -> dict[str, Any] | None:
        """summary.json, which the last complete session wrote; None if there is none."""
        return self.read_json(SUMMARY, "; the next session writes it again", SUMMARY_SHAPE)

    def sessions(self) -> list[dict[str, Any]]:
        """The figures of the sessions that have ended, oldest first (docs/run-directory.md).

        A damaged line is left out: nothing is decided by these figures.
        """
        parsed = parse_streams(self.store, [SESSIONS], _session, "is not a session")
        self.skip(parsed.damage, "sessions")
        return parsed.values

    def _yaml(self, key: str) -> Any:
        """The content of `key`. None and a note if there is no such key, or if a lenient reader finds it damaged."""
        try:
            content = self.store.get(key)
            if content is not None:
                return yaml.safe_load(content.decode("utf-8"))
        except Exception as error:  # on damaged files, the library raises errors of many types
            self.report_damage(key, error, "")
            return None
        self.notes.append(f"There is no {key}.")
        return None

    def _note(self, *sentences: str) -> None:
        self.notes += [sentence for sentence in sentences if sentence and sentence not in self.notes]


def _session(line: str) -> dict[str, Any]:
    entry: Any = json.loads(line)
    if (fault := SESSION_ENTRY(entry, "")) is not None:
        raise ValueError(fault)
    return dict(entry)
