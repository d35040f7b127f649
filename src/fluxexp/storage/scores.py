"""Scores of images: one JSON line for each scoring of an image, in streams that are only appended to.

A line adds to what earlier lines say about the same image, metric by metric. Each process writes its own stream.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fluxexp.errors import StorageError
from fluxexp.storage.json_shapes import ByName, Fields, Optional, number, parse_object, text
from fluxexp.storage.record_lines import ParsedLines, line_streams, parse_streams
from fluxexp.storage.result_files import SCORES
from fluxexp.storage.run_store import RunStore

SCORES_VERSION = 1
"""Increase it when the arithmetic of a metric changes. Then fluxexp computes older scores again."""
_LINE = Fields(
    {"key": text, "metrics": ByName(Optional(number)), "by": ByName(text), "errors": ByName(text)},
    ("key", "metrics"),
)


@dataclass(frozen=True, slots=True)
class ScoreLine:
    """The result of one scoring of one image."""

    key: str
    """Key of the task."""
    metrics: Mapping[str, float | None]
    """None if a metric does not apply to the image, or failed."""
    by: Mapping[str, str] = field(default_factory=dict)
    """Metric.identity of the metrics that have one. For a distance also the task key of the reference image."""
    errors: Mapping[str, str] = field(default_factory=dict)
    """Reasons of failed metrics."""

    def to_json(self) -> str:
        """One line of JSON, without the newline."""
        values: dict[str, Any] = {"key": self.key, "metrics": dict(self.metrics)}
        values |= {name: dict(part) for name, part in (("by", self.by), ("errors", self.errors)) if part}
        return json.dumps({**values, "version": SCORES_VERSION}, ensure_ascii=False, separators=(",", ":"))


class ScoreWriter:
    """Appends score lines to a new stream of `store`. Not thread-safe."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._stream = f"{SCORES}{uuid.uuid4().hex}.jsonl"

    def append(self, line: ScoreLine) -> None:
        """Append a line, without an fsync: fluxexp computes lost scores again.

        Raises:
            StorageError: the line cannot be written.
        """
        try:
            self._store.append_record(self._stream, line.to_json().encode(), durable=False)
        except OSError as error:
            raise StorageError(f"scores of {self._store.address} cannot be written: {error}") from error

    def flush(self) -> None:
        """Write the lines that wait in memory.

        Raises:
            StorageError: they cannot be written.
        """
        try:
            self._store.flush(self._stream)
        except OSError as error:
            raise StorageError(f"scores of {self._store.address} cannot be written: {error}") from error


@dataclass(frozen=True, slots=True)
class Score:
    """One metric of one image."""

    value: float | None
    by: str
    error: str | None


ScoreDetails = Mapping[str, Mapping[str, Score]]
"""By task key and metric."""
ScoreValues = Mapping[str, Mapping[str, float | None]]
"""By task key and metric."""


def read_score_lines(store: RunStore) -> ParsedLines[Mapping[str, Any]]:
    """All score lines of `store`, oldest stream first, so that the latest scoring counts."""
    streams = sorted(line_streams(store, SCORES), key=lambda stream: (store.modified_ns(stream), stream))
    return parse_streams(store, streams, _line, "is not a score")


def merge_scores(lines: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Score]]:
    """Scores of this version by task key and metric."""
    found: dict[str, dict[str, Score]] = {}
    for values in lines:
        if values.get("version") != SCORES_VERSION:
            continue
        by, errors = values.get("by", {}), values.get("errors", {})
        scores = {name: Score(value, by.get(name, ""), errors.get(name)) for name, value in values["metrics"].items()}
        found.setdefault(values["key"], {}).update(scores)
    return found


def score_values(details: ScoreDetails) -> dict[str, dict[str, float | None]]:
    """Only the values of `details`."""
    return {key: {name: score.value for name, score in scores.items()} for key, scores in details.items()}


def _line(line: str) -> Mapping[str, Any]:
    values = parse_object(line.encode(errors="surrogatepass"))
    if (fault := _LINE(values, "")) is not None:
        raise ValueError(fault)
    return values
