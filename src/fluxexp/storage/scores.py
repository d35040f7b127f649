"""Scores beside the records: one JSON line for each scoring of an image, in files that are only ever appended to.

A line adds to what earlier ones say of the same image, metric by metric. Every process writes a file of its own.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from fluxexp.errors import StorageError

SCORES_VERSION = 1
"""Raised when a metric's arithmetic changes: older scores are then made again."""


@dataclass(frozen=True, slots=True)
class ScoreLine:
    """What one scoring said of one image."""

    key: str
    """The task's."""
    metrics: Mapping[str, float | None]
    """None where a metric says nothing about the image."""
    by: Mapping[str, str] = field(default_factory=dict)
    """Metric.identity, of the metrics that have one; of distances the task key of what they are measured from."""
    errors: Mapping[str, str] = field(default_factory=dict)
    """Why metrics are None that failed."""

    def to_json(self) -> str:
        """One line of JSON, without the newline."""
        values: dict[str, Any] = {"key": self.key, "metrics": dict(self.metrics)}
        values |= {name: dict(part) for name, part in (("by", self.by), ("errors", self.errors)) if part}
        return json.dumps({**values, "version": SCORES_VERSION}, ensure_ascii=False, separators=(",", ":"))


class ScoreWriter:
    """Appends to a new file in `directory`, which is made with the first line. Not thread-safe."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / f"{uuid.uuid4().hex}.jsonl"
        self._stream: Any = None

    def append(self, line: ScoreLine) -> None:
        """Write a line; StorageError if it cannot be."""
        try:
            if self._stream is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._stream = self._path.open("x", encoding="utf-8")
            self._stream.write(line.to_json() + "\n")
            self._stream.flush()  # what is lost when a machine goes is scored again
        except OSError as error:
            raise StorageError(f"{self._path} cannot be written: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()


@dataclass(frozen=True, slots=True)
class Score:
    """A metric of an image."""

    value: float | None
    by: str
    error: str | None


def read_score_details(directory: Path) -> dict[str, dict[str, Score]]:
    """Scores by task key and metric, of this version. A last line without its end is passed over.

    Raises:
        StorageError: any other line is none.
    """
    found: dict[str, dict[str, Score]] = {}
    for values in _lines(directory):
        if values.get("version") != SCORES_VERSION:
            continue
        by, errors = values.get("by", {}), values.get("errors", {})
        scores = {name: Score(value, by.get(name, ""), errors.get(name)) for name, value in values["metrics"].items()}
        found.setdefault(values["key"], {}).update(scores)
    return found


def read_scores(directory: Path) -> dict[str, dict[str, float | None]]:
    """Values alone, by task key and metric; see `read_score_details`."""
    return {
        key: {name: score.value for name, score in scores.items()}
        for key, scores in read_score_details(directory).items()
    }


def _lines(directory: Path) -> Iterator[dict[str, Any]]:
    # Oldest first, so that the latest scoring counts.
    for file in sorted(directory.glob("*.jsonl"), key=lambda path: (path.stat().st_mtime_ns, path.name)):
        with file.open(encoding="utf-8", errors="replace") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.endswith("\n"):
                    break
                try:
                    values = json.loads(line)
                    values["key"], values["metrics"].items
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise StorageError(f"{file}, line {number} is no score: {error!r}; remove that line") from error
                yield values
