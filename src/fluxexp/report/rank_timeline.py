"""Spans of ranks as a picture of time: what each rank did when, how fast it was, and where it was idle.

Pure: from events to rows. Sessions follow one another without the time between them. Long runs are binned, so that
what is drawn does not grow with what was done.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from fluxexp.telemetry.events import Event

BUSY = ("condition", "denoise", "decode")
"""Spans of a device at work."""
BACKGROUND = ("read", "write")
"""Spans of threads beside the one that drives the device."""
IDLE, WARM_UP, OTHER = "idle", "warm-up", "other"
KINDS = ("load", WARM_UP, *BUSY, "wait", "steal", IDLE, OTHER, *BACKGROUND)
"""All kinds of bars there are, in the legend's order."""
_MOST_SPANS = 400
"""Of a rank that are drawn one by one."""
_BINS = 600
_SHORTEST_IDLE = 0.004
"""Of a session's length: gaps below are the time between two lines of a program."""


@dataclass(frozen=True, slots=True)
class RankLog:
    """Events of one rank in one session."""

    rank: int
    events: Sequence[Event]

    @property
    def start_s(self) -> float:
        """Of the first span."""
        return min(event.start_s for event in self.events)

    @property
    def end_s(self) -> float:
        """Of the last span."""
        return max(event.end_s for event in self.events)


@dataclass(frozen=True, slots=True)
class SessionSpan:
    """Logs of one launch, and where it begins on the common axis."""

    logs: Sequence[RankLog]
    offset_s: float
    start_s: float
    end_s: float

    def at(self, moment_s: float) -> float:
        """A moment of this session on the common axis, in seconds."""
        return moment_s - self.start_s + self.offset_s


@dataclass(frozen=True, slots=True)
class Bar:
    """A rank was at `kind` from `start_s` to `end_s`, on the common axis."""

    rank: int
    kind: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Throughput:
    """A rank in the interval around `at_s`: images a second, and the share of it that its device was at work."""

    rank: int
    at_s: float
    images_per_s: float
    busy: float


def sessions(logs: Iterable[RankLog]) -> list[SessionSpan]:
    """Logs that overlap in time belong to one session; sessions in their order."""
    groups: list[list[RankLog]] = []
    end_s = float("-inf")
    for log in sorted(logs, key=lambda log: log.start_s):
        if log.start_s > end_s:
            groups.append([])
        groups[-1].append(log)
        end_s = max(end_s, log.end_s)
    found: list[SessionSpan] = []
    offset_s = 0.0
    for group in groups:
        start_s, end_s = min(log.start_s for log in group), max(log.end_s for log in group)
        found.append(SessionSpan(group, offset_s, start_s, end_s))
        offset_s += end_s - start_s
    return found


def length_s(found: Sequence[SessionSpan]) -> float:
    """Of the common axis."""
    return found[-1].offset_s + found[-1].end_s - found[-1].start_s if found else 0.0


def bars(found: Sequence[SessionSpan], gap: str = IDLE) -> list[Bar]:
    """Activities that the chart shows for each rank. `gap` labels idle intervals."""
    drawn: list[Bar] = []
    for session in found:
        for log in session.logs:
            spans = [_bar(session, log.rank, event) for event in log.events if event.seconds > 0]
            front = sorted((bar for bar in spans if bar.kind not in BACKGROUND), key=lambda bar: bar.start_s)
            back = sorted((bar for bar in spans if bar.kind in BACKGROUND), key=lambda bar: bar.start_s)
            drawn += _coarse([*front, *_gaps(session, log.rank, front, gap)], session)
            drawn += _coarse(back, session)
    return drawn


def throughputs(found: Sequence[SessionSpan], num_bins: int = 60) -> list[Throughput]:
    """Speed and work of every rank over time, in equal intervals of the common axis; warm-up counts as neither."""
    width_s = length_s(found) / num_bins
    if width_s <= 0:
        return []
    sums: dict[int, list[list[float]]] = {}
    for session in found:
        for log in session.logs:
            bins = sums.setdefault(log.rank, [[0.0, 0.0] for _ in range(num_bins)])
            for event in log.events:
                if event.span in BUSY and not event.warmup and event.seconds > 0:
                    _add_to_bins(bins, event, session, width_s)
    return [
        Throughput(rank, (number + 0.5) * width_s, images / width_s, min(1.0, busy_s / width_s))
        for rank, bins in sorted(sums.items())
        for number, (images, busy_s) in enumerate(bins)
    ]


def _add_to_bins(bins: list[list[float]], event: Event, session: SessionSpan, width_s: float) -> None:
    """Add an event's images (counted where they are denoised) and seconds to the intervals that it lies in."""
    start_s, end_s = session.at(event.start_s), session.at(event.end_s)
    share = event.extra.get("share", 1.0)
    images = (event.tasks or 0) if event.span == "denoise" else 0
    for number in range(int(start_s / width_s), min(len(bins), int(end_s / width_s) + 1)):
        overlap_s = min(end_s, (number + 1) * width_s) - max(start_s, number * width_s)
        if overlap_s > 0:
            bins[number][0] += images * overlap_s / event.seconds
            bins[number][1] += overlap_s * share


def _bar(session: SessionSpan, rank: int, event: Event) -> Bar:
    kind = WARM_UP if event.warmup else event.span if event.span in KINDS else OTHER
    return Bar(rank, kind, session.at(event.start_s), session.at(event.end_s))


def _gaps(session: SessionSpan, rank: int, front: Sequence[Bar], kind: str) -> list[Bar]:
    """Where no span is, from the session's first moment to its last."""
    shortest_s = _SHORTEST_IDLE * (session.end_s - session.start_s)
    found: list[Bar] = []
    reached_s = session.at(session.start_s)
    for start_s, end_s in [*((bar.start_s, bar.end_s) for bar in front), (session.at(session.end_s),) * 2]:
        if start_s - reached_s > shortest_s:
            found.append(Bar(rank, kind, reached_s, start_s))
        reached_s = max(reached_s, end_s)
    return found


def _coarse(spans: Sequence[Bar], session: SessionSpan) -> list[Bar]:
    """`spans` of one rank, or of many of them what prevails in each of equal intervals."""
    if len(spans) <= _MOST_SPANS:
        return list(spans)
    start_s, width_s = session.offset_s, (session.end_s - session.start_s) / _BINS
    seconds: list[dict[str, float]] = [{} for _ in range(_BINS)]
    for bar in spans:
        first, last = int((bar.start_s - start_s) / width_s), int((bar.end_s - start_s) / width_s)
        for number in range(first, min(_BINS, last + 1)):
            left_s = start_s + number * width_s
            overlap_s = min(bar.end_s, left_s + width_s) - max(bar.start_s, left_s)
            seconds[number][bar.kind] = seconds[number].get(bar.kind, 0.0) + max(0.0, overlap_s)
    kinds = [max(kinds, key=lambda kind: kinds[kind]) if kinds else None for kinds in seconds]
    runs = [(kind, [number for number, _ in group]) for kind, group in groupby(enumerate(kinds), key=lambda k: k[1])]
    return [
        Bar(spans[0].rank, kind, start_s + numbers[0] * width_s, start_s + (numbers[-1] + 1) * width_s)
        for kind, numbers in runs
        if kind is not None
    ]
