"""What a W&B run contains that is made again: from the files of a run, or of a sweep as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fluxexp.compare import point_labels, points_table
from fluxexp.config.schema import TrackingConfig
from fluxexp.errors import StorageError
from fluxexp.replay.rank_history import Moment, timeline
from fluxexp.replay.replayed_samples import sample_rows
from fluxexp.replay.source import Source
from fluxexp.storage.sweep_directory import SweepDirectory
from fluxexp.terminal import say
from fluxexp.tracking import JobType, SampleRow, run_title, summary_values, sweep_title

LabelsOf = Callable[[SweepDirectory], Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """The content of one W&B run."""

    config: Mapping[str, Any]
    run_id: str
    """Beginning of W&B's id."""
    name: str
    job_type: JobType
    group: str
    moments: Sequence[Moment]
    total: int | None
    """Number of tasks; None if unknown."""
    rows: Iterator[SampleRow]
    points: tuple[list[str], list[list[Any]]] | None
    """Columns and rows of the table of points, of a sweep."""
    summary: Mapping[str, Any]


def run_contents(source: Source, tracking: TrackingConfig, labels_of: LabelsOf) -> Contents:
    """The content of the W&B run of a run, or of a point of a sweep. `labels_of` is `read_labels`.

    Raises:
        StorageError, OSError: its files cannot be read.
    """
    outcomes = source.directory.reader.outcomes()
    if damage := source.directory.reader.manifest().damage.sentence():
        say(f"fluxexp: {source.directory.address}: {damage}", urgent=True)
    summary = source.summary(outcomes)
    sweep = summary.get("sweep")
    title = run_title(source.name, source.config)
    if sweep is not None and (address := source.directory.address.sibling(sweep)) is not None:
        title = labels_of(SweepDirectory(address)).get(source.directory.name, title)
    return Contents(
        config={**source.config, "fingerprint": source.fingerprint},
        run_id=f"{source.name}-{source.fingerprint}",
        name=title,
        job_type="run" if sweep is None else "point",
        group=sweep or source.name,
        moments=list(timeline(source.directory.reader, tracking.every_s)),
        total=summary.get("num_tasks"),
        rows=sample_rows(source, outcomes, tracking.images),
        points=None,
        summary=summary,
    )


def sweep_contents(sweep: SweepDirectory, tracking: TrackingConfig) -> Contents:
    """The content of the W&B run of a sweep as a whole.

    Raises:
        StorageError, OSError: its files cannot be read.
    """
    values = sweep.reader.values()
    if values is None:
        raise StorageError(f"{sweep.address} is not the directory of a sweep: it has no sweep.json")
    sources = list(_sources(sweep, values))
    made = [point for point in values["points"] if point["status"] != "failed"]
    name = sources[0].name if sources else sweep.name
    return Contents(
        config={"points": [point["directory"] for point in made]},
        run_id=sweep.name,
        name=sweep_title(name, [point.get("settings") or {} for point in made]),
        job_type="sweep",
        group=sweep.name,
        moments=list(timeline(sweep.reader, tracking.every_s)),
        total=values.get("num_tasks"),
        rows=_rows(sources, tracking.images),
        points=points_table(values),
        summary=summary_values(values),
    )


def _sources(sweep: SweepDirectory, values: Mapping[str, Any]) -> Iterator[Source]:
    """The points whose files can be read."""
    for point in values["points"]:
        with suppress(StorageError):  # replaying the point itself says what is wrong
            if run := sweep.run_of(point):
                yield Source.read(run)


def _rows(sources: Sequence[Source], limit: int) -> Iterator[SampleRow]:
    """Up to `limit` finished tasks, of the first points."""
    for source in sources:
        if limit <= 0:
            return
        for row in sample_rows(source, source.directory.reader.outcomes(), limit):
            limit -= 1
            yield row


def read_labels(sweep: SweepDirectory) -> Mapping[str, str]:
    """Labels of the points by directory; empty if sweep.json is missing. What is damaged in it is left out."""
    return point_labels(sweep.reader.lenient().values() or {})
