"""One rank's part of a session: load each model, work through the shard, and help other ranks."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from functools import partial

from fluxexp.errors import FluxexpError, LostRankError
from fluxexp.experiment.group_work import GroupWork, RankResources
from fluxexp.experiment.rank_measurement import RankMeasurement
from fluxexp.experiment.session_messages import RankResult
from fluxexp.experiment.session_plan import SessionPlan
from fluxexp.experiment.session_stop import SessionStop
from fluxexp.experiment.task_supply import ShardSupply, TaskSupply, orders_of
from fluxexp.interruption import Interrupted
from fluxexp.parallel.topology import Topology
from fluxexp.records import Record
from fluxexp.storage.attempts import WorkerProcess
from fluxexp.storage.result_files import events_stream
from fluxexp.telemetry import Event, EventLog, part_of_run
from fluxexp.worker import PreparedSample, WorkOrder

OnImage = Callable[[WorkOrder, Record, PreparedSample], None]


class RankRun:
    """The work of one rank in all rounds of a session. Another thread may use `measurement` while `work` runs.

    Args:
        topology: of this rank.
        session_plan: of the first round.
        on_image: receives each image that was written.
        on_record: receives the number of the run and the key of each task that has a record.
    """

    def __init__(
        self,
        topology: Topology,
        session_plan: SessionPlan,
        stop: SessionStop,
        on_image: OnImage | None = None,
        on_record: Callable[[int, str], None] = lambda *_: None,
    ) -> None:
        self._session_plan = session_plan
        self._on_image = on_image
        self._on_record = on_record
        self._stream = events_stream(topology.rank, session_plan.session)
        self._num_split = 0
        """Events of this rank that are in the stores of the points of a sweep, too."""
        is_sweep = session_plan.sweep is not None
        self.measurement = RankMeasurement(topology, len(session_plan.runs), is_sweep=is_sweep)
        append = partial(session_plan.directory.store_without_retries.append_record, self._stream, durable=False)
        self._resources = RankResources(
            topology=topology,
            stop=stop,
            orders=orders_of(session_plan),
            measurement=self.measurement,
            events=EventLog(append, listeners=[self.measurement.add, lambda _: topology.liveness.touch()]),
            process=WorkerProcess.current(session_plan.session, topology.rank),
            on_record=self._count,
        )

    def work(self, session_plan: SessionPlan) -> RankResult:
        """Make this rank's shard of a round, and help other ranks, until the session stops.

        An error ends this rank's work, but not the run. The result contains the error.
        """
        resources = self._resources
        return self.work_on(
            session_plan, ShardSupply(resources.topology, session_plan, resources.orders, resources.events)
        )

    def work_on(self, session_plan: SessionPlan, supply: TaskSupply) -> RankResult:
        """Make the tasks of `supply`. See `work`."""
        self.measurement.begin()
        groups = session_plan.groups()
        with self.measurement.sampler:
            for number in supply.groups():
                if not self._resources.stop.is_requested:
                    self._try_group(session_plan, number, groups[number], supply)
        self.measurement.lose("events", self._end_events())
        if session_plan.sweep is not None:
            try:
                self._split_events()
            except Exception as raised:  # the images exist, and the events of the sweep, too
                self.measurement.lose("events of points", f"{type(raised).__name__}: {raised}")
        return self.measurement.finish()

    def _end_events(self) -> str | None:
        """Write all events, so that rank 0 can read them. Returns a sentence about those that are lost."""
        lost = self._resources.events.close()
        try:
            self._session_plan.directory.store_without_retries.flush(self._stream)
        except OSError as error:
            return lost or f"the last events could not be written: {error}"
        return lost

    def free_model(self) -> None:
        """Free the memory of the model, which stays loaded between rounds."""
        self._resources.loaded.free()

    def _split_events(self) -> None:
        """Write this rank's spans of each run of a sweep to the store of that run: those of this round."""
        lines = self._session_plan.directory.store_without_retries.records(self._stream)
        for line in lines[self._num_split :]:
            event = Event.from_json(line)
            for number in map(int, event.extra.get("runs", ())):  # only these: a sweep can have thousands of runs
                if part := part_of_run(event, number):
                    store = self._resources.orders[number].directory.store_without_retries
                    store.append_record(self._stream, part.to_json().encode(), durable=False)
        for order in self._resources.orders:
            order.directory.store_without_retries.flush(self._stream)
        self._num_split = len(lines)

    def _try_group(self, session_plan: SessionPlan, number: int, group: Sequence[int], supply: TaskSupply) -> None:
        try:
            tasks = supply.tasks(number)
            if tasks is not None:
                GroupWork(self._resources, session_plan, number, group, tasks).run()
        except LostRankError as raised:
            self.measurement.fail(group, str(raised), is_able=True)
        except Interrupted:  # while it loaded the model
            return
        except FluxexpError as raised:
            self.measurement.fail(group, str(raised), is_able=False)
        except Exception as raised:
            traceback.print_exc()  # an unexpected error: a traceback shows where it happened
            self.measurement.fail(group, f"{type(raised).__name__}: {raised}", is_able=False)

    def _count(self, order: WorkOrder, record: Record, item: PreparedSample | None) -> None:
        self.measurement.count(order.number, record)
        self._on_record(order.number, record.key)
        if item is not None and self._on_image is not None:
            try:
                self._on_image(order, record, item)
            except Exception as error:  # it only shows the image, which is on disk
                self.measurement.lose("shown images", f"{type(error).__name__}: {error}")
