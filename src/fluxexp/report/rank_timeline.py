"""Converts the events of ranks to the rows of time plots: activities, idle intervals and throughput of each rank.

Pure functions. All sessions of a run share one time axis, which leaves out the time between sessions. Activities of
long runs are binned, so that the size of the plot does not grow with the length of the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from fluxexp.telemetry.events import Event

BUSY = ("condition", "denoise", "decode")
"""Spans in which the device computes."""
BACKGROUND = ("read", "write")
"""Spans of background threads. They overlap with the spans of the thread that drives the device."""
IDLE, WARM_UP, OTHER = "idle", "warm-up", "other"
KINDS = ("load", WARM_UP, *BUSY, "wait", "steal", IDLE, OTHER, *BACKGROUND)
"""All kinds of bars, in the order of the legend."""
_MAX_SPANS = 400
"""If a rank has more spans in a session, they are binned."""
_NUM_BINS = 600
_MIN_IDLE_FRACTION = 0.004
"""Shorter gaps, as a fraction of the session's length, are not idle intervals: they are too short to see."""


@dataclass(frozen=True, slots=True)
class RankLog:
    """Events of one rank in one session."""

    rank: int
    events: Sequence[Event]

    @property
    def start_s(self) -> float:
        """Start of the first span, in seconds since the epoch."""
        return min(event.start_s for event in self.events)

    @property
    def end_s(self) -> float:
        """End of the last span, in seconds since the epoch."""
        return max(event.end_s for event in self.events)


@dataclass(frozen=True, slots=True)
class SessionSpan:
    """The logs of one session, and its place on the common time axis."""

    logs: Sequence[RankLog]
    offset_s: float
    """Start of the session on the common axis, in seconds."""
    start_s: float
    """Start of the first span, in seconds since the epoch."""
    end_s: float
    """End of the last span, in seconds since the epoch."""

    def at(self, time_s: float) -> float:
        """The place of `time_s` (seconds since the epoch) on the common axis, in seconds."""
        return time_s - self.start_s + self.offset_s


@dataclass(frozen=True, slots=True)
class Bar:
    """Activity `kind` of a rank from `start_s` to `end_s` on the common axis."""

    rank: int
    kind: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Throughput:
    """Throughput of a rank in one interval.

    `at_s` is the middle of the interval on the common axis. `busy` is the fraction (0 to 1) of the interval in which
    the device computed.
    """

    rank: int
    at_s: float
    images_per_s: float
    busy: float


def sessions(logs: Iterable[RankLog]) -> list[SessionSpan]:
    """Group `logs` by session, in the order of time. Logs that overlap in time belong to one session."""
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
    """Length of the common axis, in seconds."""
    return found[-1].offset_s + found[-1].end_s - found[-1].start_s if found else 0.0


def bars(found: Sequence[SessionSpan], gap: str = IDLE) -> list[Bar]:
    """The bars of each rank. Idle intervals become bars of kind `gap`."""
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
    """Throughput of every rank in `num_bins` equal intervals of the common axis. Warm-up does not count."""
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
    """Add the images and busy seconds of an event to the bins that it overlaps.

    Only `denoise` counts images, so that each image counts once. Its images are spread over its duration.
    """
    start_s, end_s = session.at(event.start_s), session.at(event.end_s)
    share = event.extra.get("share", 1.0)  # in the log of a sweep's point: its fraction of the event's seconds
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
    """The intervals of the session without a span of this rank, as bars of `kind`. `front` is sorted by start."""
    shortest_s = _MIN_IDLE_FRACTION * (session.end_s - session.start_s)
    found: list[Bar] = []
    reached_s = session.at(session.start_s)
    for start_s, end_s in [*((bar.start_s, bar.end_s) for bar in front), (session.at(session.end_s),) * 2]:
        if start_s - reached_s > shortest_s:
            found.append(Bar(rank, kind, reached_s, start_s))
        reached_s = max(reached_s, end_s)
    return found


def _coarse(spans: Sequence[Bar], session: SessionSpan) -> list[Bar]:
    """`spans` of one rank, binned if there are more than `_MAX_SPANS`.

    Each bin gets the kind with the most seconds in it. Adjacent bins of the same kind become one bar.
    """
    if len(spans) <= _MAX_SPANS:
        return list(spans)
    start_s, width_s = session.offset_s, (session.end_s - session.start_s) / _NUM_BINS
    seconds: list[dict[str, float]] = [{} for _ in range(_NUM_BINS)]
    for bar in spans:
        first, last = int((bar.start_s - start_s) / width_s), int((bar.end_s - start_s) / width_s)
        for number in range(first, min(_NUM_BINS, last + 1)):
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
