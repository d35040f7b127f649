"""Reads a run back from its store. Every user of results reads through here.

A strict reader raises StorageError for damage. A lenient reader (`lenient()`) leaves out what is damaged and adds a
sentence to `notes`. The manifest and the scores are read once and then cached: a caller that knows that other
processes wrote in between calls `refresh_records` or `refresh_scores`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import yaml

from fluxexp.config import RunConfig
from fluxexp.config.migrations import migrate, read_config
from fluxexp.errors import ConfigError, StorageError
from fluxexp.records import Record, content_hash
from fluxexp.storage.feature_store import FeatureStore, read_set_scores
from fluxexp.storage.manifest import merge, read_attempts
from fluxexp.storage.record_lines import line_streams, parse_streams
from fluxexp.storage.run_store import RunStore
from fluxexp.storage.scores import Score, ScoreDetails, ScoreValues, merge_scores, read_score_lines, score_values

T = TypeVar("T")
CONFIG = "config.yaml"
OVERRIDES = "overrides.yaml"
FINGERPRINT = "fingerprint.json"
SUMMARY = "summary.json"
EVENTS = "events/"
IMAGES = "images/"


@dataclass(frozen=True, slots=True)
class _Merged(Generic[T]):
    """Values by task key, and a message for each damaged line."""

    values: Mapping[str, T]
    damage: Sequence[str]


@dataclass(slots=True)
class _Cache:
    """What the readers of one run have read so far."""

    records: _Merged[Record] | None = None
    images: frozenset[str] | None = None
    scores: _Merged[Mapping[str, Score]] | None = None


class ResultReader:
    """Reads what a run and a sweep have in common: scores and events."""

    def __init__(self, store: RunStore, *, is_lenient: bool = False, cache: _Cache | None = None) -> None:
        self.store = store
        self.notes: list[str] = []
        """What is missing, damaged or unknown, in sentences."""
        self._is_lenient = is_lenient
        self._cache = cache or _Cache()

    @property
    def name(self) -> str:
        """Name of the directory."""
        return self.store.name

    def scores(self) -> ScoreValues:
        """Scores by task key and metric; of a sweep, the distances from reference images."""
        return score_values(self.score_details())

    def score_details(self) -> ScoreDetails:
        """Like `scores`, with what computed each score, and with errors."""
        if self._cache.scores is None:
            lines = read_score_lines(self.store)
            self._cache.scores = _Merged(merge_scores(lines.values), lines.damage)
        self._check(self._cache.scores.damage, "the scores")
        return self._cache.scores.values

    def refresh_scores(self) -> None:
        """Read scores again at the next use: other processes wrote some."""
        self._cache.scores = None

    def events(self, parse: Callable[[str], T]) -> dict[str, list[T]]:
        """Events of each rank and session by stream name (docs/run-directory.md).

        `parse` makes an event from a line and raises ValueError for a damaged one.
        """
        names = [stream.removeprefix(EVENTS) for stream in line_streams(self.store, EVENTS)]
        parsed = {
            name: parse_streams(self.store, [f"{EVENTS}{name}"], parse, "is not an event")
            for name in names
            if rank_of_events(name) is not None
        }
        self._check([message for part in parsed.values() for message in part.damage], "events")
        return {name: part.values for name, part in parsed.items()}

    def _check(self, damage: Sequence[str], noun: str) -> None:
        """StorageError or a note if there are damaged lines."""
        if not damage:
            return
        if not self._is_lenient:
            raise StorageError(damage[0])
        lines = "line" if len(damage) == 1 else "lines"
        self.notes.append(f"{len(damage)} damaged {lines} of {noun} left out.")

    def _json(self, key: str, hint: str) -> dict[str, Any] | None:
        """The object in `key`, or None if there is no such key; StorageError or a note if it is damaged."""
        content = self.store.get(key)
        if content is None:
            return None
        try:
            values = json.loads(content)
            if not isinstance(values, dict):
                raise ValueError("it is not a JSON object")
        except ValueError as error:
            self._report_damage(key, error, hint)
            return None
        return values

    def _report_damage(self, key: str, error: Exception, hint: str) -> None:
        reason = " ".join(str(error).split())
        if not self._is_lenient:
            raise StorageError(f"{self.store.address}/{key} is damaged ({reason}){hint}") from error
        self.notes.append(f"{key} cannot be read: {reason}")


class RunReader(ResultReader):
    """Reads one run."""

    def lenient(self) -> RunReader:
        """A lenient reader of the same run. It shares the cache of this reader and has its own notes."""
        return RunReader(self.store, is_lenient=True, cache=self._cache)

    def is_run(self) -> bool:
        """Whether the store contains a run."""
        return self.store.exists(CONFIG)

    def config_values(self) -> dict[str, Any]:
        """The config as plain values with the names of this version of fluxexp. Unknown keys stay.

        Raises:
            StorageError: it is missing or damaged; a lenient reader returns no values instead.
        """
        content = self.store.get(CONFIG)
        if content is None:
            if not self._is_lenient:
                raise StorageError(f"{self.store.address} is not the directory of a run: it has no {CONFIG}")
            self.notes.append(f"There is no {CONFIG}.")
            return {}
        try:
            values = yaml.safe_load(content.decode("utf-8"))
            if not isinstance(values, dict):
                raise ValueError("it is not a mapping")
        except (ValueError, yaml.YAMLError) as error:
            self._report_damage(CONFIG, error, "")
            return {}
        return migrate(values)

    def config(self) -> RunConfig:
        """The config the run was last started with; keys that its fluxexp did not have yet have their defaults.

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
        """Hash of the content of fingerprint.json, which is what named the directory and its tasks.

        Raises:
            StorageError: the file is missing or damaged.
        """
        payload = self._json(FINGERPRINT, "")
        if payload is None:
            raise StorageError(f"{self.store.address} is not the directory of a run: it has no {FINGERPRINT}")
        return content_hash(payload)

    def overrides(self) -> list[str]:
        """The overrides on the command line; none, and a note, if the file is missing.

        Raises:
            StorageError: the file is damaged; a lenient reader returns none instead.
        """
        content = self.store.get(OVERRIDES)
        if content is None:
            self.notes.append(f"There is no {OVERRIDES}.")
            return []
        try:
            values = yaml.safe_load(content.decode("utf-8"))
        except (ValueError, yaml.YAMLError) as error:
            self._report_damage(OVERRIDES, error, "")
            return []
        return [str(value) for value in values] if isinstance(values, list) else []

    def records(self) -> Mapping[str, Record]:
        """The result of each task, by key, including `ok` records whose image is gone."""
        if self._cache.records is None:
            attempts = read_attempts(self.store)
            self._cache.records = _Merged(merge(attempts.values), attempts.damage)
        self._check(self._cache.records.damage, "the manifest")
        return self._cache.records.values

    def outcomes(self) -> dict[str, Record]:
        """The result of each task, by key. An `ok` record whose image is gone counts as never made."""
        return {key: record for key, record in self.records().items() if record.status != "ok" or self._has(record)}

    def refresh_records(self) -> None:
        """Read the manifest and list the images again at the next use: other processes wrote some."""
        self._cache.records = None
        self._cache.images = None

    def image(self, key: str) -> bytes | None:
        """The image file `key`, for example `images/k.png`, as `Record.file` names it."""
        return self.store.get(key)

    def has_image(self, key: str) -> bool:
        """Whether the image file `key` exists."""
        return self.store.exists(key)

    def features(self, extractor: str) -> FeatureStore:
        """Features by the extractor of this name."""
        return FeatureStore(self.store, extractor)

    def set_scores(self) -> tuple[dict[str, float], int]:
        """Distances between sets, and the number of images in them. StorageError if they are damaged."""
        return read_set_scores(self.store)

    def summary(self) -> dict[str, Any] | None:
        """summary.json, which the last complete session wrote; None if there is none."""
        return self._json(SUMMARY, "; remove it: the next session writes it again")

    def _has(self, record: Record) -> bool:
        if self._cache.images is None:
            self._cache.images = frozenset(self.store.list(IMAGES))
        return record.file is not None and f"{IMAGES}{_file_name(record.file)}" in self._cache.images


def _file_name(key: str) -> str:
    return key.rpartition("/")[2]


def image_key(task_key: str, image_format: str) -> str:
    """Key of the image file of a task."""
    return f"{IMAGES}{task_key}.{image_format}"


def rank_of_events(stream: str) -> int | None:
    """Rank whose events `stream` (`rank-0000-SESSION.jsonl`) contains; None for another name."""
    parts: Sequence[str] = stream.split("-")
    return int(parts[1]) if len(parts) > 1 and parts[0] == "rank" and parts[1].isdecimal() else None
