"""One rank's part of a session: load each model, work through the shard, and help other ranks."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from fluxexp import __version__
from fluxexp.config.schema import ParallelismMode, RunConfig
from fluxexp.data import expected_pixels
from fluxexp.errors import FluxexpError, RankError
from fluxexp.experiment.pool import Pool, TaskQueue
from fluxexp.experiment.rank_measurement import RankMeasurement
from fluxexp.experiment.session_messages import RankResult, queue_name, replica_name
from fluxexp.experiment.session_plan import SessionPlan
from fluxexp.experiment.work_layout import WorkLayout
from fluxexp.models.base import ContextParallelModel, Model
from fluxexp.models.loading.model_loader import load_context_parallel_model
from fluxexp.parallel.replica import Replica
from fluxexp.parallel.sharding import static_shard
from fluxexp.parallel.topology import Topology
from fluxexp.records import Record
from fluxexp.storage.result_files import events_stream
from fluxexp.telemetry import Event, EventLog, part_of_run
from fluxexp.worker import LeadingModel, PreparedSample, ResultWriter, Worker, WorkOrder, follow

OnImage = Callable[[WorkOrder, Record, PreparedSample], None]


class RankRun:
    """The work of one rank. Another thread may use `measurement` while `work` runs."""

    def __init__(self, topology: Topology, session_plan: SessionPlan, on_image: OnImage | None = None) -> None:
        self._topology = topology
        self._session_plan = session_plan
        self._on_image = on_image
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

    def work(self) -> RankResult:
        """Make this rank's tasks. An error ends this rank's work, but not the run. The result contains the error."""
        error: str | None = None
        store = self._session_plan.directory.store
        stream = events_stream(self._topology.rank, self._session_plan.session)
        events = EventLog(partial(store.append_record, stream, durable=False), listeners=[self.measurement.add])
        with self.measurement.sampler:
            for number, group in enumerate(self._session_plan.groups()):
                error = self._try_group(events, number, group) or error
        if self._session_plan.sweep is not None:
            self._split_events(store.records(stream), stream)
        return self.measurement.finish(error)

    def _split_events(self, lines: Sequence[bytes], stream: str) -> None:
        """Write this rank's spans of each run of a sweep to the store of that run."""
        for line in lines:
            event = Event.from_json(line)
            for number in map(int, event.extra.get("runs", ())):  # only these: a sweep can have thousands of runs
                if part := part_of_run(event, number):
                    store = self._orders[number].directory.store
                    store.append_record(stream, part.to_json().encode(), durable=False)

    def _try_group(self, events: EventLog, number: int, group: Sequence[int]) -> str | None:
        try:
            self._make_group(events, number, group)
        except FluxexpError as raised:
            error = str(raised)
        except Exception as raised:
            traceback.print_exc()  # an unexpected error: a traceback shows where it happened
            error = f"{type(raised).__name__}: {raised}"
        else:
            return None
        for run in group:
            self.measurement.run_errors.setdefault(run, error)
        return error

    def _make_group(self, events: EventLog, number: int, group: Sequence[int]) -> None:
        """Make tasks of a group of runs that share a model: first the own shard, then stolen tasks."""
        config = self._session_plan.runs[group[0]].plan.config
        layout = self._session_plan.work_layouts[number]
        pool = make_pool(self._session_plan, group, self._orders, layout.num_replicas, slice(-layout.num_last or None))
        place = self._place(layout, config.parallelism.mode)
        if not static_shard(len(pool.entries), len(pool.shards), place):
            return
        queue = pool.queue(self._topology.coordinator, place, events, queue_name(number))
        if layout.context_size == 1:
            try:
                model = self._make_alone(events, number, group, queue)
            except BaseException as error:
                if layout.num_last:
                    self._decline_last(events, number, group, error)
                raise
            if layout.num_last:
                self._make_last(events, number, group, model)
            return
        replica = Replica.of(self._topology, layout.context_size, replica_name(number))
        span = events.span("load", synchronize=self._topology.synchronize)
        with span, _give_up_on_error(queue, replica.is_leader), replica.loading():
            whole = self._load(group)
        self._make_together(events, number, group, queue, whole, replica)

    def _make_alone(
        self, events: EventLog, number: int, group: Sequence[int], queue: TaskQueue
    ) -> ContextParallelModel:
        """Load the model of a group and work through `queue`, without other ranks."""
        with events.span("load", synchronize=self._topology.synchronize):
            model = self._load(group)
        self.measurement.set_optimizations(group, model.applied_optimizations, model.skipped_optimizations)
        if number == 0:  # in a sweep over several models, means begin with the work of the first
            self.measurement.sampler.restart_means()
        self._work_through(events, group, queue, model)
        return model

    def _load(self, group: Sequence[int]) -> ContextParallelModel:
        """Load the model of a group, with memory for the largest image of any of its runs."""
        configs = [self._session_plan.runs[number].plan.config for number in group]
        pixels = max(map(_expected_pixels, configs))
        return load_context_parallel_model(configs[0], self._topology.device, self._topology.rank, pixels)

    def _make_together(
        self,
        events: EventLog,
        number: int,
        group: Sequence[int],
        queue: TaskQueue,
        whole: ContextParallelModel,
        replica: Replica,
        of_what: str = "",
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
                self._work_through(events, group, queue, leading, replica.size)
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
        name = queue_name(number, is_last=True)
        queue = pool.queue(topology.coordinator, topology.rank // layout.last_size, events, name)
        return queue, Replica.of(topology, layout.last_size, replica_name(number, is_last=True))

    def _work_through(
        self,
        events: EventLog,
        group: Sequence[int],
        queue: TaskQueue,
        model: Model,
        context_size: int = 1,
    ) -> None:
        """Make the tasks of `queue` and write their results."""
        provenance = {"model": self._orders[group[0]].config.model.name, "fluxexp": __version__}
        writer = ResultWriter(provenance, events, self._count)
        try:
            with _give_up_on_error(queue):
                Worker(model, self._topology, writer, events, context_size=context_size).run(queue)
        finally:
            self.measurement.num_stolen += queue.num_stolen
            with events.span("wait", reason="write"):
                writer.close()
            self.measurement.run_errors |= {number: str(error) for number, error in writer.errors.items()}
        if len(writer.errors) == len(group):
            queue.give_up()
            raise next(iter(writer.errors.values()))

    def _place(self, layout: WorkLayout, mode: ParallelismMode) -> int:
        """This rank's index among the replicas of a group. Groups that do not need all ranks get different ranks."""
        world_size = self._topology.world_size
        if layout.num_ranks == world_size or mode == "single":
            return self._topology.rank // layout.context_size
        place = (self._topology.rank - self._next_rank) % world_size
        self._next_rank += layout.num_ranks
        return place

    def _count(self, order: WorkOrder, record: Record, item: PreparedSample | None) -> None:
        self.measurement.count(order.number, record)
        if item is not None and self._on_image is not None:
            self._on_image(order, record, item)


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
    pending = [run.pending for run in runs]
    return Pool.of([orders[number] for number in group], [run.plan for run in runs], pending, num_replicas, part)


def _expected_pixels(config: RunConfig) -> int:
    sampling = config.sampling
    return expected_pixels(sampling.height, sampling.width, sampling.max_pixels, config.model.resolution)
