"""The common part of the readers of a run and of a sweep: scores, events, a cache, and the strict or lenient mode.

A strict reader raises StorageError for damage. A lenient reader leaves out what is damaged and adds a sentence to
`notes`. Values are cached. A caller that knows that other processes wrote since then calls a `refresh_` method.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fluxexp.errors import StorageError
from fluxexp.storage.manifest_index import Flags, ManifestIndex
from fluxexp.storage.record_lines import line_streams, parse_streams
from fluxexp.storage.result_files import EVENTS, RankSession, parse_events_stream
from fluxexp.storage.run_store import RunStore
from fluxexp.storage.scores import Score, ScoreDetails, ScoreValues, merge_scores, read_score_lines, score_values

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Merged(Generic[T]):
    """Values by task key, and a message for each damaged line."""

    values: Mapping[str, T]
    damage: Sequence[str]


@dataclass(slots=True)
class ReaderCache:
    """What the readers of one run have read so far."""

    manifest: ManifestIndex | None = None
    is_manifest_fresh: bool = False
    made: Flags | None = None
    scores: Merged[Mapping[str, Score]] | None = None


class ResultReader:
    """Reads what a run and a sweep have in common: scores, events and JSON files."""

    def __init__(self, store: RunStore, *, is_lenient: bool = False, cache: ReaderCache | None = None) -> None:
        self.store = store
        self.notes: list[str] = []
        """What is missing, damaged or unknown, in sentences."""
        self.is_lenient = is_lenient
        self.cache = cache or ReaderCache()

    def scores(self) -> ScoreValues:
        """Scores by task key and metric; of a sweep, the distances from reference images."""
        return score_values(self.score_details())

    def score_details(self) -> ScoreDetails:
        """Like `scores`, with what computed each score, and with errors."""
        if self.cache.scores is None:
            lines = read_score_lines(self.store)
            self.cache.scores = Merged(merge_scores(lines.values), lines.damage)
        self.check(self.cache.scores.damage, "the scores")
        return self.cache.scores.values

    def refresh_scores(self) -> None:
        """Read scores again at the next use: other processes wrote some."""
        self.cache.scores = None

    def events(self, parse: Callable[[str], T]) -> dict[RankSession, list[T]]:
        """Events of each rank and session (docs/run-directory.md). Streams with other names are left out.

        `parse` makes an event from a line and raises ValueError for a damaged one.
        """
        parsed = {
            rank_session: parse_streams(self.store, [stream], parse, "is not an event")
            for stream in line_streams(self.store, EVENTS)
            if (rank_session := parse_events_stream(stream)) is not None
        }
        self.check([message for part in parsed.values() for message in part.damage], "events")
        return {rank_session: part.values for rank_session, part in parsed.items()}

    def check(self, damage: Sequence[str], noun: str) -> None:
        """If there are damaged lines, raise StorageError, or add a note in lenient mode."""
        if not damage:
            return
        if not self.is_lenient:
            raise StorageError(damage[0])
        lines = "line" if len(damage) == 1 else "lines"
        self.notes.append(f"{len(damage)} damaged {lines} of {noun} left out.")

    def read_json(self, key: str, hint: str) -> dict[str, Any] | None:
        """The object in `key`; None if there is no such key. See `report_damage` for a damaged file."""
        try:
            content = self.store.get(key)
            if content is None:
                return None
            values = json.loads(content)
            if not isinstance(values, dict):
                raise ValueError("it is not a JSON object")
        except (OSError, ValueError) as error:
            self.report_damage(key, error, hint)
            return None
        return values

    def report_damage(self, key: str, error: Exception, hint: str) -> None:
        """Raise StorageError for the damaged file `key`, or add a note in lenient mode. `hint` says what to do."""
        reason = " ".join(str(error).split())
        if not self.is_lenient:
            raise StorageError(f"{self.store.address}/{key} is damaged ({reason}){hint}") from error
        self.notes.append(f"{key} cannot be read: {reason}")
