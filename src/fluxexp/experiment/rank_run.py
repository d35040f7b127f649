"""One rank's part of a session: load each model, work through the shard, and help other ranks."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from fluxexp import __version__
from fluxexp.config.schema import ParallelismMode, RunConfig
from fluxexp.data import expected_pixels
from fluxexp.errors import FluxexpError, LostRankError, RankError
from fluxexp.experiment.pool import Pool, TaskQueue
from fluxexp.experiment.rank_measurement import RankMeasurement
from fluxexp.experiment.session_messages import RankResult, queue_name, replica_name
from fluxexp.experiment.session_plan import SessionPlan
from fluxexp.experiment.session_stop import SessionStop
from fluxexp.experiment.work_layout import WorkLayout
from fluxexp.interruption import Interrupted, interruption
from fluxexp.models.base import ContextParallelModel, Model
from fluxexp.models.loading.model_loader import load_context_parallel_model
from fluxexp.parallel.replica import Replica
from fluxexp.parallel.sharding import static_shard
from fluxexp.parallel.topology import Topology, is_device_lost
from fluxexp.records import Record
from fluxexp.storage.attempts import WorkerProcess
from fluxexp.storage.result_files import events_stream
from fluxexp.telemetry import Event, EventLog, part_of_run
from fluxexp.worker import Assignment, LeadingModel, PreparedSample, ResultWriter, Worker, WorkOrder, follow

OnImage = Callable[[WorkOrder, Record, PreparedSample], None]


class RankRun:
    """The work of one rank in all rounds of a session. Another thread may use `measurement` while `work` runs.

    Args:
        topology: of this rank.
        session_plan: of the first round.
        on_image: receives each image that was written.
    """

    def __init__(
        self, topology: Topology, session_plan: SessionPlan, stop: SessionStop, on_image: OnImage | None = None
    ) -> None:
        self._topology = topology
        self._session_plan = session_plan
        """Of the current round."""
        self._stop = stop
        self._process = WorkerProcess.current(session_plan.session, topology.rank)
        self._on_image = on_image
        self._loaded: tuple[int, ContextParallelModel] | None = None
        """The last group and its model, for another round."""
        is_sweep = session_plan.sweep is not None
        self.measurement = RankMeasurement(topology, len(session_plan.runs), is_sweep=is_sweep)
        self._orders = [
            WorkOrder(
                number=number,
                config=run.plan.config,
                dataset=run.plan.dataset,
                directory=run.plan.directory,
                attempts=run.attempts,
                is_alone=not is_sweep,
            )
            for number, run in enumerate(session_plan.runs)
        ]
        self._next_rank = 0
        self._stream = events_stream(topology.rank, session_plan.session)
        self._num_split = 0
        """Events of this rank that are in the stores of the points of a sweep, too."""
        store = session_plan.directory.store_without_retries
        append = partial(store.append_record, self._stream, durable=False)
        self._events = EventLog(append, listeners=[self.measurement.add, lambda _: topology.liveness.touch()])

    def work(self, session_plan: SessionPlan) -> RankResult:
        """Make this rank's tasks of a round, until the session stops.

        An error ends this rank's work, but not the run. The result contains the error.
        """
        self._session_plan = session_plan
        self._next_rank = 0
        with self.measurement.sampler:
            for number, group in enumerate(session_plan.groups()):
                if not self._stop.is_requested:
                    self._try_group(self._events, number, group)
        self.measurement.lose("events", self._events.close())
        if session_plan.sweep is not None:
            try:
                self._split_events()
            except Exception as raised:  # the images exist, and the events of the sweep, too
                self.measurement.lose("events of points", f"{type(raised).__name__}: {raised}")
        return self.measurement.finish()

    def free_model(self) -> None:
        """Free the memory of the model, which stays loaded between rounds."""
        self._loaded = None

    def _split_events(self) -> None:
        """Write this rank's spans of each run of a sweep to the store of that run: those of this round."""
        lines = self._session_plan.directory.store_without_retries.records(self._stream)
        for line in lines[self._num_split :]:
            event = Event.from_json(line)
            for number in map(int, event.extra.get("runs", ())):  # only these: a sweep can have thousands of runs
                if part := part_of_run(event, number):
                    store = self._orders[number].directory.store_without_retries
                    store.append_record(self._stream, part.to_json().encode(), durable=False)
        self._num_split = len(lines)

    def _try_group(self, events: EventLog, number: int, group: Sequence[int]) -> None:
        try:
            self._make_group(events, number, group)
        except LostRankError as raised:
            self.measurement.fail(group, str(raised), is_able=True)
        except Interrupted:  # while it loaded the model
            return
        except FluxexpError as raised:
            self.measurement.fail(group, str(raised), is_able=False)
        except Exception as raised:
            traceback.print_exc()  # an unexpected error: a traceback shows where it happened
            self.measurement.fail(group, f"{type(raised).__name__}: {raised}", is_able=False)

    def _make_group(self, events: EventLog, number: int, group: Sequence[int]) -> None:
        """Make tasks of a group of runs that share a model: first the own shard, then stolen tasks."""
        config = self._session_plan.runs[group[0]].plan.config
        layout = self._session_plan.work_layouts[number]
        pool = make_pool(self._session_plan, group, self._orders, layout.num_replicas, slice(-layout.num_last or None))
        place = self._place(layout, config.parallelism.mode)
        alone = self._alone(group, place, layout.num_replicas)
        if not static_shard(len(pool.entries), len(pool.shards), place) and not alone:
            return
        name = queue_name(self._session_plan.round_number, number)
        queue = pool.queue(self._topology.coordinator, place, events, name)
        if layout.context_size == 1:
            try:
                model = self._make_alone(events, number, group, queue, alone)
            except BaseException as error:
                if layout.num_last:
                    self._decline_last(events, number, group, error)
                raise
            if layout.num_last and self._stop.is_requested:
                self._decline_last(events, number, group, RankError("the session stops"))
            elif layout.num_last:
                self._make_last(events, number, group, model)
            return
        replica = Replica.of(self._topology, layout.context_size, replica_name(number))
        span = events.span("load", synchronize=self._topology.synchronize)
        with span, _give_up_on_error(queue, replica.is_leader), replica.loading():
            whole = self._load(number, group)
        self._make_together(events, number, group, queue, whole, replica, alone=alone)

    def _alone(self, group: Sequence[int], place: int, num_replicas: int) -> list[Assignment]:
        """The tasks that a process may have died of, of the replica at `place`: they are made one at a time.

        All tasks that would be quarantined after one more death belong to one replica, so that no two of them are in
        work when a process dies, and takes the others with it.
        """
        alone: list[Assignment] = []
        for number in group if place < num_replicas else ():
            run = self._session_plan.runs[number]
            own = [*(run.last_chances if place == 0 else ()), *run.suspects[place::num_replicas]]
            alone += (Assignment(self._orders[number], task) for task in run.plan.tasks(own))
        return alone

    def _make_alone(
        self,
        events: EventLog,
        number: int,
        group: Sequence[int],
        queue: TaskQueue,
        alone: Sequence[Assignment],
    ) -> ContextParallelModel:
        """Load the model of a group and work through `queue`, without other ranks."""
        with events.span("load", synchronize=self._topology.synchronize):
            model = self._load(number, group)
        self.measurement.set_optimizations(group, model.applied_optimizations, model.skipped_optimizations)
        if number == 0:  # in a sweep over several models, means begin with the work of the first
            self.measurement.sampler.restart_means()
        self._work_through(events, group, queue, model, alone=alone)
        return model

    def _load(self, number: int, group: Sequence[int]) -> ContextParallelModel:
        """Load the model of a group, with memory for the largest image of any of its runs; once for all rounds.

        Raises:
            Interrupted: a signal, or another rank, asked this process to stop.
        """
        if self._loaded is not None and self._loaded[0] == number:
            return self._loaded[1]
        self._loaded = None  # free its memory first
        configs = [self._session_plan.runs[number].plan.config for number in group]
        pixels = max(map(_expected_pixels, configs))
        with interruption.raising():
            model = load_context_parallel_model(configs[0], self._topology.device, self._topology.rank, pixels)
        self._loaded = number, model
        return model

    def _make_together(
        self,
        events: EventLog,
        number: int,
        group: Sequence[int],
        queue: TaskQueue,
        whole: ContextParallelModel,
        replica: Replica,
        of_what: str = "",
        alone: Sequence[Assignment] = (),
    ) -> None:
        """Work through `queue` with the other ranks of a replica whose process group is open."""
        try:
            words = whole.enable_context_parallel(
                replica.collectives, self._session_plan.runs[group[0]].plan.config.parallelism.context_kind
            )
            leading = LeadingModel(whole, replica, words + of_what)
            self.measurement.set_optimizations(group, leading.applied_optimizations, leading.skipped_optimizations)
            if number == 0 and not of_what:
                self.measurement.sampler.restart_means()
            if replica.is_leader:
                self._work_through(events, group, queue, leading, replica.size, alone=alone)
            else:
                follow(whole, replica, events)
        except BaseException:
            replica.break_off()
            raise
        finally:
            whole.disable_context_parallel()
            replica.leave()

    def _make_last(self, events: EventLog, number: int, group: Sequence[int], whole: ContextParallelModel) -> None:
        """Make the last tasks, which are fewer than the ranks: several ranks make each of them together."""
        queue, replica = self._last(events, number, group)
        try:
            with events.span("wait", reason="others"), replica.loading():
                pass
        except RankError:  # a rank that failed in its own shard; the summary has its error
            if replica.is_leader:
                self._work_through(events, group, queue, whole)
            return
        num_last = self._session_plan.work_layouts[number].num_last
        self._make_together(events, number, group, queue, whole, replica, f" (the last {num_last})")

    def _decline_last(self, events: EventLog, number: int, group: Sequence[int], error: BaseException) -> None:
        """Tell the other ranks that this one will not take part in the last tasks."""
        with suppress(RankError, RuntimeError):  # the store itself may be lost
            queue, replica = self._last(events, number, group)
            replica.decline(error)
            if replica.is_leader:
                queue.give_up()

    def _last(self, events: EventLog, number: int, group: Sequence[int]) -> tuple[TaskQueue, Replica]:
        layout, topology = self._session_plan.work_layouts[number], self._topology
        replicas, part = topology.world_size // layout.last_size, slice(-layout.num_last, None)
        pool = make_pool(self._session_plan, group, self._orders, replicas, part)
        name = queue_name(self._session_plan.round_number, number, is_last=True)
        queue = pool.queue(topology.coordinator, topology.rank // layout.last_size, events, name)
        return queue, Replica.of(topology, layout.last_size, replica_name(number, is_last=True))

    def _work_through(
        self,
        events: EventLog,
        group: Sequence[int],
        queue: TaskQueue,
        model: Model,
        context_size: int = 1,
        *,
        alone: Sequence[Assignment] = (),
    ) -> None:
        """Make the tasks of `alone` one at a time, then those of `queue`, and write their results."""
        provenance = {"model": self._orders[group[0]].config.model.name, "fluxexp": __version__}
        writer = ResultWriter(provenance, events, self._count, self._process)
        stops = lambda: self._stop.is_requested  # noqa: E731
        self._stop.on_interruption = writer.note_stop
        is_lost = False
        try:
            with _give_up_on_error(queue):
                worker = Worker(model, self._topology, writer, events, context_size=context_size, stops=stops)
                worker.run_alone(alone)
                worker.run(queue)
        except Exception as error:
            is_lost = is_device_lost(error)
            raise
        finally:
            self.measurement.num_stolen += queue.num_stolen
            with events.span("wait", reason="write"):
                writer.close(is_device_lost=is_lost)
            self.measurement.run_errors |= {number: str(error) for number, error in writer.errors.items()}
        if len(writer.errors) == len(group):
            queue.give_up()
            raise next(iter(writer.errors.values()))

    def _place(self, layout: WorkLayout, mode: ParallelismMode) -> int:
        """This rank's index among the replicas of a group. Groups that do not need all ranks get different ranks."""
        own = self._session_plan.ranks.index(self._topology.rank)
        world_size = len(self._session_plan.ranks)
        if layout.num_ranks == world_size or mode == "single":
            return own // layout.context_size
        place = (own - self._next_rank) % world_size
        self._next_rank += layout.num_ranks
        return place

    def _count(self, order: WorkOrder, record: Record, item: PreparedSample | None) -> None:
        self.measurement.count(order.number, record)
        if item is not None and self._on_image is not None:
            try:
                self._on_image(order, record, item)
            except Exception as error:  # it only shows the image, which is on disk
                self.measurement.lose("shown images", f"{type(error).__name__}: {error}")


@contextmanager
def _give_up_on_error(queue: TaskQueue, is_own: bool = True) -> Generator[None]:
    """On an error, leave the rest of the shard to other ranks. `is_own` is False for a follower, which has no shard."""
    try:
        yield
    except BaseException:
        if is_own:
            with suppress(RankError, RuntimeError):  # the store itself may be lost
                queue.give_up()
        raise


def make_pool(
    session_plan: SessionPlan, group: Sequence[int], orders: Sequence[WorkOrder], num_replicas: int, part: slice
) -> Pool:
    """The pool of `part` of the tasks of a group of runs. It is the same on every rank."""
    runs = [session_plan.runs[number] for number in group]
    pending = [run.shared for run in runs]
    return Pool.of([orders[number] for number in group], [run.plan for run in runs], pending, num_replicas, part)


def _expected_pixels(config: RunConfig) -> int:
    sampling = config.sampling
    return expected_pixels(sampling.height, sampling.width, sampling.max_pixels, config.model.resolution)
