"""Reads a run back from its store. Every user of a run's results reads through here.

A strict reader raises StorageError for damage. `lenient()` leaves out what is damaged and adds a sentence to `notes`.
The manifest is read once and cached. A caller that knows that other processes wrote since then calls
`refresh_records`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from fluxexp.config import RunConfig
from fluxexp.config.migrations import migrate, read_config
from fluxexp.errors import ConfigError, StorageError
from fluxexp.records import Record, content_hash
from fluxexp.storage.feature_store import FeatureStore, read_set_scores
from fluxexp.storage.manifest import merge, read_attempts
from fluxexp.storage.record_lines import parse_streams
from fluxexp.storage.result_files import CONFIG, FINGERPRINT, IMAGES, OVERRIDES, SESSIONS, SUMMARY
from fluxexp.storage.result_reader import Merged, ResultReader
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

    def records(self) -> Mapping[str, Record]:
        """The result of each task, by key, including `ok` records whose image is gone."""
        if self.cache.records is None:
            attempts = read_attempts(self.store)
            self.cache.records = Merged(merge(attempts.values), attempts.damage)
        self.check(self.cache.records.damage, "the manifest")
        return self.cache.records.values

    def outcomes(self) -> dict[str, Record]:
        """The result of each task, by key. An `ok` record whose image is gone counts as never made."""
        return {key: record for key, record in self.records().items() if record.status != "ok" or self._has(record)}

    def refresh_records(self) -> None:
        """Read the manifest and list the images again at the next use: other processes wrote some."""
        self.cache.records = None
        self.cache.images = None

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

    def set_scores(self) -> tuple[dict[str, float], int]:
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
        return parse_streams(self.store, [SESSIONS], _session, "is not a session").values

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

    def _has(self, record: Record) -> bool:
        if self.cache.images is None:
            self.cache.images = frozenset(self.store.list(IMAGES))
        return record.file is not None and f"{IMAGES}{_file_name(record.file)}" in self.cache.images


def _session(line: str) -> dict[str, Any]:
    entry = json.loads(line)
    if not isinstance(entry, dict) or not isinstance(entry.get("ranks"), list):
        raise ValueError("it has no ranks")
    return entry


def _file_name(key: str) -> str:
    return key.rpartition("/")[2]
