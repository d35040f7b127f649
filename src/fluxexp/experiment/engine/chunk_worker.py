"""A worker that is given its tasks in chunks: the work of one rank, in a thread, and the reports about it.

It does not know which engine started it, and how messages reach it.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import traceback
from collections.abc import Collection
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from fluxexp.address import Address
from fluxexp.config import RunConfig, build
from fluxexp.config.schema import ParallelismConfig
from fluxexp.errors import FluxexpError, RankError
from fluxexp.experiment.engine.chunk_supply import ChunkSupply
from fluxexp.experiment.engine.follower_supply import FollowerSupply, announce_turns
from fluxexp.experiment.engine.worker_messages import (
    Instruction,
    MeetingPoint,
    ReplicaPlace,
    WorkerReport,
    WorkerSession,
    WorkerStart,
)
from fluxexp.experiment.planner import Planner
from fluxexp.experiment.rank_run import RankRun
from fluxexp.experiment.session_messages import SESSION, RankResult, SessionAnnouncement
from fluxexp.experiment.session_plan import SessionPlan, agree_on_plan
from fluxexp.experiment.session_stop import STOP, SessionStop
from fluxexp.experiment.task_supply import TaskSupply, orders_of
from fluxexp.parallel.coordinator import LocalCoordinator
from fluxexp.parallel.liveness import Liveness, LivenessLimits
from fluxexp.parallel.topology import Topology, is_device_lost, join
from fluxexp.storage.patience import on_each_use
from fluxexp.storage.result_files import ENGINE_MARKER, MANIFEST
from fluxexp.version import __version__

_EXIT_USELESS = 1


class ChunkWorker:
    """One worker. `begin` is called once for each session, then `exchange` until it returns the result.

    Of several workers that make each image together, the first one is used like this. The others `serve`.
    """

    def __init__(self) -> None:
        self._work: _Work | None = None

    def meeting_point(self) -> MeetingPoint:
        """A free port of this machine."""
        host = socket.gethostname()
        with socket.socket() as free:
            free.bind(("", 0))
            return MeetingPoint(host, int(free.getsockname()[1]))

    def visible_devices(self) -> str:
        """The GPUs that this worker may use, as CUDA_VISIBLE_DEVICES names them; empty without any."""
        return os.environ.get("CUDA_VISIBLE_DEVICES", "")

    def begin(
        self, session: WorkerSession, rank: int, index: int = 0, point: MeetingPoint | None = None, *devices: str
    ) -> WorkerStart:
        """Follow the session plan, and start to work. The first instruction says on what.

        Args:
            session: to work on.
            rank: of this worker in the session.
            index: of this worker among those that make each image together.
            point: where they meet; None for a worker that makes images alone.
            devices: `visible_devices` of each of them.
        """
        host = socket.gethostname()
        if self._work is not None and self._work.is_alive:
            print("fluxexp: this worker was taken for lost, and ends", file=sys.stderr, flush=True)
            os._exit(_EXIT_USELESS)  # it works on an earlier session, and no thread can be ended
        place = None if point is None else ReplicaPlace(index, len(devices), point, devices)
        try:
            topology, session_plan = _join_session(session, rank, place, host)
        except (FluxexpError, OSError) as error:
            return WorkerStart(host, error=str(error))
        self._work = _Work(topology, session_plan, place)
        return WorkerStart(host, topology.device_name)

    def exchange(self, instruction: Instruction) -> WorkerReport:
        """Follow an instruction, and report as soon as there is news, or after `wait_s`."""
        assert self._work is not None
        return self._work.exchange(instruction)

    def serve(self, session: WorkerSession, rank: int, index: int, point: MeetingPoint, *devices: str) -> WorkerStart:
        """Begin, and help the first worker of the replica to the end of the session."""
        start = self.begin(session, rank, index, point, *devices)
        if start.error is None:
            assert self._work is not None
            self._work.wait()
        return start


class _Work:
    """The work of one session."""

    def __init__(self, topology: Topology, session_plan: SessionPlan, place: ReplicaPlace | None) -> None:
        self._topology = topology
        self._session_plan = session_plan
        self._groups = session_plan.groups()
        plans = [run.plan for run in session_plan.runs]
        touch = topology.liveness.touch
        announce = announce_turns(topology.coordinator)
        self._supply = ChunkSupply(orders_of(session_plan), plans, self._groups, touch, announce)
        is_follower = place is not None and place.index > 0
        self._source: TaskSupply = FollowerSupply(topology.coordinator, touch) if is_follower else self._supply
        self._stop = SessionStop(topology.coordinator, topology.liveness)
        self._rank = RankRun(topology, session_plan, self._stop, on_record=self._supply.count)
        self._result: RankResult | None = None
        self._seen = 0
        self._thread = threading.Thread(target=self._run, name="work", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def wait(self) -> None:
        self._thread.join()

    def exchange(self, instruction: Instruction) -> WorkerReport:
        if instruction.stop is not None:
            STOP.publish(self._topology.coordinator, instruction.stop)
        self._supply.follow(instruction)
        self._seen = self._supply.wait_for_news(self._seen, instruction.wait_s)
        result = self._result
        news = self._supply.take_news()
        for number in news.runs:  # until then, a store may keep the records in the memory of this process
            self._session_plan.runs[number].plan.directory.store.flush(MANIFEST)
        if news.refused:
            self._end_if_device_is_lost()
        return WorkerReport(
            figures=self._rank.measurement.figures(),
            is_idle=self._supply.is_idle,
            wants_chunk=self._supply.wants_chunk,
            finished=news.finished,
            refused=self._reasons(news.refused),
            pace=news.pace,
            result=result,
        )

    def _run(self) -> None:
        try:
            with on_each_use(self._topology.liveness.touch), self._stop:
                self._result = self._rank.work_on(self._session_plan, self._source)
            self._rank.free_model()
        except Exception as error:
            traceback.print_exc()
            self._result = RankResult.without_work(self._topology, f"{type(error).__name__}: {error}")
        finally:
            self._supply.note_end()

    def _reasons(self, groups: Collection[int]) -> dict[int, str]:
        errors = self._rank.measurement.run_errors
        return {group: errors.get(self._groups[group][0], "it made no images") for group in groups}

    def _end_if_device_is_lost(self) -> None:
        """End this process if its GPU cannot be used any more. A new process can use it."""
        try:
            self._topology.synchronize()
        except Exception as error:
            if is_device_lost(error):
                print(f"fluxexp: the device is lost, and this worker ends: {error}", file=sys.stderr, flush=True)
                os._exit(_EXIT_USELESS)


def _join_session(
    session: WorkerSession, rank: int, place: ReplicaPlace | None, host: str
) -> tuple[Topology, SessionPlan]:
    """Check that this worker sees what the leading process sees, and build the session plan.

    Raises:
        FluxexpError, OSError: it does not.
    """
    if session.version != __version__:
        raise RankError(f"{host} has fluxexp {__version__}, but this session is of {session.version}")
    with suppress(OSError):  # absolute paths may still be right
        os.chdir(session.working_directory)
    config = build(RunConfig, session.announced.config)
    topology = _join_replica(config.parallelism, rank, place)
    SESSION.publish(topology.coordinator, SessionAnnouncement(session=session.announced))
    make_plan = Planner(Address.of(session.root), is_main=False)
    session_plan = agree_on_plan(topology, None, make_plan, ExitStack())
    directory = session_plan.directory
    if directory.store_without_retries.get(ENGINE_MARKER) != session.marker:
        raise RankError(
            f"{host} does not see the results in {directory.address} (seen from {Path.cwd()}): the leading process has "
            "written a marker there. Every machine needs the same folder, such as one of a network file system: set "
            "output.dir to it, or to an object store"
        )
    return topology, session_plan


def _join_replica(config: ParallelismConfig, rank: int, place: ReplicaPlace | None) -> Topology:
    """The topology of a worker. Its coordinator is shared with those that make each image together, not with others."""
    if place is None:
        coordinator = LocalCoordinator(rank, rank + 1)
        return replace(join(config), rank=rank, world_size=rank + 1, coordinator=coordinator)
    os.environ.update(place.environment())
    joined = join(config)
    joined.liveness.leave()  # it judges by the place in the replica, and the others by the rank in the session
    world_size = rank - place.index + place.size
    shared = joined.coordinator.part("replica", rank, world_size)
    limits = LivenessLimits(config.lost_after_s, config.hung_after_s)
    liveness = Liveness(shared.part("liveness", rank, world_size), limits)
    liveness.start()
    return replace(joined, rank=rank, world_size=world_size, coordinator=shared, liveness=liveness)
