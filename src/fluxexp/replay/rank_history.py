"""The figures of all ranks over time, from the event streams of all sessions of a run."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from fluxexp.storage.result_reader import ResultReader
from fluxexp.telemetry import Event, RankFigures, RankTotals, Window, Windows

_MOST_MOMENTS = 10_000

Events = list[tuple[int, Event]]
"""Ranks and their events, in the order in which the events ended."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Figures of each rank at `wall_s`, in seconds since the start of the run."""

    wall_s: float
    now_s: float
    """The same moment in seconds since the epoch."""
    figures: Mapping[int, RankFigures]
    window: Window
    """The time since the moment before."""
    start_s: float
    """Start of the session, in seconds since the epoch."""
    resumed: int = 0
    """Images of earlier sessions."""


def timeline(reader: ResultReader, every_s: float) -> Iterator[Moment]:
    """Yield one moment for every `every_s` seconds of each session, and one for its end.

    The time between sessions is left out. The figures of each session start at zero, as in the live session.

    Damaged lines are left out. A session has at most `_MOST_MOMENTS`: a damaged time could make it last for years.
    """
    before_s, resumed = 0.0, 0
    for events in _sessions(reader):
        moment = None
        for moment in _session(events, every_s):
            yield replace(moment, wall_s=before_s + moment.wall_s, resumed=resumed)
        if moment is not None:
            before_s, resumed = before_s + moment.wall_s, resumed + moment.window.num_images


def _sessions(reader: ResultReader) -> list[Events]:
    sessions: dict[str, Events] = defaultdict(list)
    for (rank, session), events in reader.events(Event.from_json).items():
        sessions[session] += [(rank, event) for event in events]
    # Session names are start times, so sorting them restores the order of the sessions.
    return [sorted(sessions[name], key=lambda item: item[1].end_s) for name in sorted(sessions)]


def _session(events: Events, every_s: float) -> Iterator[Moment]:
    if not events:
        return
    start_s, length_s = _extent(events)
    every_s = max(every_s, length_s / _MOST_MOMENTS)
    # Events are sorted by their end, so the dict keeps the end of each rank's last event.
    ranks = {rank: _Rank(last_s) for rank, last_s in {rank: event.end_s for rank, event in events}.items()}
    windows = Windows(start_s)
    ticks = 1
    for rank, event in events:
        while ticks * every_s < min(event.end_s - start_s, length_s):
            yield _moment(start_s, ticks * every_s, ranks, windows)
            ticks += 1
        ranks[rank].add(event)
    yield _moment(start_s, length_s, ranks, windows)


def _extent(events: Events) -> tuple[float, float]:
    """Start of the first event, in seconds since the epoch, and seconds from there to the end of the last event."""
    start_s = min(event.start_s for _, event in events)
    return start_s, events[-1][1].end_s - start_s


def _moment(start_s: float, wall_s: float, ranks: Mapping[int, _Rank], windows: Windows) -> Moment:
    now_s = start_s + wall_s
    figures = {rank: ranks[rank].figures(now_s) for rank in sorted(ranks)}
    return Moment(wall_s, now_s, figures, windows.next(figures, now_s), start_s)


def _number(value: object, otherwise: float | None) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else otherwise


class _Rank:
    """Figures of one rank up to the current moment."""

    def __init__(self, last_s: float) -> None:
        self._totals = RankTotals()
        self._last_s = last_s
        self._utilization: float | None = None
        self._memory_gib: float | None = None

    def add(self, event: Event) -> None:
        self._totals.add(event)
        # An image counts when it is on disk. A write event with an error is an image that could not be written.
        if event.span == "write" and event.error is None:
            self._totals.count(images=event.tasks or 0)
        self._utilization = _number(event.extra.get("utilisation"), self._utilization)
        self._memory_gib = _number(event.extra.get("memory_gib"), self._memory_gib)

    def figures(self, now_s: float) -> RankFigures:
        return RankFigures(
            totals=self._totals.snapshot(),
            utilization=self._utilization,
            memory_gib=self._memory_gib,
            finished_s=self._last_s if self._last_s <= now_s else None,
        )
