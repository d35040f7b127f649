"""The common part of the readers of a run and of a sweep: scores, events, a cache, and the strict or lenient mode.

A strict reader raises StorageError for damage. A lenient reader leaves out what is damaged and adds a sentence to
`notes`. Values are cached. A caller that knows that other processes wrote since then calls a `refresh_` method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from fluxexp.errors import StorageError
from fluxexp.storage.json_shapes import Fields, parse_object, sound_part
from fluxexp.storage.manifest_index import Flags, ManifestIndex
from fluxexp.storage.record_lines import line_streams, parse_streams
from fluxexp.storage.result_files import EVENTS, RankSession, parse_events_stream
from fluxexp.storage.run_store import RunStore
from fluxexp.storage.scores import Score, ScoreDetails, ScoreValues, merge_scores, read_score_lines, score_values
from fluxexp.terminal import say

T = TypeVar("T")
_ANY = Fields({})


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
    listing: Iterator[tuple[str, int]] | None = None
    """A listing of the images that has begun, see `RunReader.begin_listing`."""
    scores: Merged[Mapping[str, Score]] | None = None
    reported: set[str] = field(default_factory=set)
    """Messages about damage that were printed."""


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
        self.skip(self.cache.scores.damage, "scores")
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
        self.skip([message for part in parsed.values() for message in part.damage], "events")
        return {rank_session: part.values for rank_session, part in parsed.items()}

    def skip(self, damage: Sequence[str], noun: str) -> None:
        """Report damaged lines that can be left out: once for each file, or as one note in lenient mode.

        Scores are made again, and events only describe.
        """
        if self.is_lenient:
            self.check(damage, noun)
            return
        by_file: dict[str, list[str]] = {}
        for message in damage:
            by_file.setdefault(message.partition(", line ")[0], []).append(message.removesuffix("; remove this line"))
        for messages in by_file.values():
            more = f" (and {len(messages) - 1} more of this file)" if len(messages) > 1 else ""
            report = f"{messages[0]}{more}; left out"
            if report not in self.cache.reported:
                self.cache.reported.add(report)
                say(f"fluxexp: {report}", urgent=True)

    def check(self, damage: Sequence[str], noun: str) -> None:
        """If there are damaged lines, raise StorageError, or add a note in lenient mode."""
        if not damage:
            return
        if not self.is_lenient:
            raise StorageError(damage[0])
        lines = "line" if len(damage) == 1 else "lines"
        self.notes.append(f"{len(damage)} damaged {lines} of {noun} left out.")

    def read_json(self, key: str, hint: str, shape: Fields = _ANY) -> dict[str, Any] | None:
        """The object in `key`; None if there is no such key.

        See `report_damage` for a damaged file, or one of another shape. A lenient reader leaves out the parts that have
        another shape.
        """
        try:
            content = self.store.get(key)
            if content is None:
                return None
            values = parse_object(content)
        except (OSError, ValueError) as error:
            self.report_damage(key, error, hint)
            return None
        if (fault := shape(values, "")) is None:
            return values
        if not self.is_lenient:
            self.report_damage(key, ValueError(fault), hint)
        self.notes += [f"{key} is damaged: {fault}." for fault in shape.faults(values) or [fault]]
        sound: dict[str, Any] = sound_part(values, shape)
        return sound

    def report_damage(self, key: str, error: Exception, hint: str) -> None:
        """Raise StorageError for the damaged file `key`, or add a note in lenient mode. `hint` says what to do."""
        reason = " ".join(str(error).split())
        if not self.is_lenient:
            raise StorageError(f"{self.store.address}/{key} is damaged ({reason}){hint}") from error
        self.notes.append(f"{key} cannot be read: {reason}")
