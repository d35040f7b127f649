"""What the process that leads a session and its workers tell each other, if workers pull their work in chunks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fluxexp.experiment.session_messages import AnnouncedSession, RankResult
from fluxexp.experiment.session_stop import StopRequest
from fluxexp.telemetry import RankFigures


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSession:
    """What a worker needs to know of a session before it works."""

    announced: AnnouncedSession
    root: str
    """Parent of the runs' directories, unless `output.dir` is set."""
    working_directory: str
    """Of the leading process. Relative paths in configs begin there."""
    marker: bytes
    """Content of the session's marker in the store of the session. A worker that does not find it sees another store.
    """
    version: str
    """Of fluxexp."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskChunk:
    """Tasks of one group that a worker is given at once."""

    number: int
    group: int
    tasks: tuple[tuple[int, int], ...]
    """(number of the run, number of the task in it) of each."""
    costs: tuple[float, ...]
    """Of each task, in any unit."""
    is_alone: bool
    """Whether its one task may have ended a process, so that it must be made alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """What a worker should do next."""

    group: int | None = None
    """Load the model of this group, and ask for its tasks. None: no change."""
    chunk: TaskChunk | None = None
    """More tasks of the group."""
    stop: StopRequest | None = None
    """End the batches in work, and begin no others."""
    is_end: bool = False
    """There is no more work."""
    wait_s: float = 1.0
    """Report after this time, or as soon as there is news."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """How the work of a worker goes."""

    figures: RankFigures
    is_idle: bool
    """Whether it has no tasks, and does not load a model."""
    wants_chunk: bool
    """Whether it has loaded the model, and will soon have made all tasks that it has."""
    finished: tuple[int, ...] = ()
    """Numbers of the chunks, since the last report, of which each task has a record."""
    refused: Mapping[int, str] = field(default_factory=dict)
    """Groups that it cannot work on, with the reason."""
    pace: float | None = None
    """Seconds for a unit of cost, if it is new."""
    result: RankResult | None = None
    """If its work has ended."""


@dataclass(frozen=True, slots=True)
class WorkerStart:
    """Where a worker runs, and why it cannot work."""

    host: str
    device: str = ""
    error: str | None = None
    """None if it can work."""


@dataclass(frozen=True, slots=True)
class MeetingPoint:
    """Where the workers of a replica find each other: a port of the first one's machine."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class ReplicaPlace:
    """A worker's place among those that make each image together."""

    index: int
    size: int
    meeting_point: MeetingPoint
    devices: tuple[str, ...]
    """CUDA_VISIBLE_DEVICES of each worker."""

    def environment(self) -> dict[str, str]:
        """The variables that a launcher would set."""
        variables = {
            "RANK": str(self.index),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.index),
            "LOCAL_WORLD_SIZE": str(self.size),
            "MASTER_ADDR": self.meeting_point.host,
            "MASTER_PORT": str(self.meeting_point.port),
        }
        # Each process sees the GPUs of all, because they exchange memory.
        return variables | ({"CUDA_VISIBLE_DEVICES": ",".join(self.devices)} if all(self.devices) else {})
