"""One rank's work on a group of runs that share a model, in one round: alone, or with the ranks of its replica."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field

from fluxexp.config.schema import RunConfig
from fluxexp.data import expected_pixels
from fluxexp.errors import RankError
from fluxexp.experiment.rank_measurement import RankMeasurement
from fluxexp.experiment.session_messages import replica_name
from fluxexp.experiment.session_plan import PlannedRun, SessionPlan
from fluxexp.experiment.session_stop import SessionStop
from fluxexp.experiment.task_supply import GroupTasks, RankQueue
from fluxexp.interruption import interruption
from fluxexp.models.base import ContextParallelModel, Model
from fluxexp.models.loading.model_loader import load_context_parallel_model
from fluxexp.parallel.replica import Replica
from fluxexp.parallel.topology import Topology, is_device_lost
from fluxexp.records import Record
from fluxexp.storage.attempts import WorkerProcess
from fluxexp.telemetry import EventLog
from fluxexp.version import __version__
from fluxexp.worker import (
    Assignment,
    AttemptLogs,
    LeadingModel,
    PreparedSample,
    ResultWriter,
    Worker,
    WorkOrder,
    follow,
)

OnRecord = Callable[[WorkOrder, Record, PreparedSample | None], None]


@dataclass(slots=True)
class LoadedModel:
    """The model that a rank has loaded last. It stays loaded between the rounds of a session."""

    topology: Topology
    number: int | None = None
    """Number of the group that it belongs to."""
    model: ContextParallelModel | None = None

    def load(self, number: int, configs: Sequence[RunConfig], *, takes_loras: bool) -> ContextParallelModel:
        """Load the model of a group, with memory for the largest image of any of its runs, unless it is loaded.

        Raises:
            Interrupted: a signal, or another rank, asked this process to stop.
        """
        if self.number == number and self.model is not None:
            return self.model
        self.free()  # its memory first
        pixels = max(map(_expected_pixels, configs))
        with interruption.raising():
            self.model = load_context_parallel_model(
                configs[0], self.topology.device, self.topology.rank, pixels, takes_loras=takes_loras
            )
        self.number = number
        return self.model

    def free(self) -> None:
        """Free the model's memory."""
        self.number = self.model = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankResources:
    """What a rank keeps for all groups and rounds of a session."""

    topology: Topology
    stop: SessionStop
    orders: Sequence[WorkOrder]
    """One for each run of the session."""
    measurement: RankMeasurement
    events: EventLog
    process: WorkerProcess
    on_record: OnRecord
    loaded: LoadedModel = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "loaded", LoadedModel(self.topology))


class GroupWork:
    """The work of one rank on one group in one round.

    Args:
        resources: of the rank.
        session_plan: of the round.
        number: of the group.
        group: numbers of its runs.
        tasks: of this rank.
    """

    def __init__(
        self, resources: RankResources, session_plan: SessionPlan, number: int, group: Sequence[int], tasks: GroupTasks
    ) -> None:
        self._resources = resources
        self._session_plan = session_plan
        self._number = number
        self._group = group
        self._tasks = tasks
        self._layout = session_plan.work_layouts[number]
        self._topology = resources.topology
        self._events = resources.events

    def run(self) -> None:
        """Make tasks of the group, as long as the queue of this rank has some."""
        layout, queue, alone = self._layout, self._tasks.queue, self._tasks.alone
        if layout.context_size > 1:
            replica = Replica.of(self._topology, layout.context_size, replica_name(self._number, turn=self._tasks.turn))
            with self._load_span(), _give_up_on_error(queue, replica.is_leader), replica.loading():
                whole = self._load()
            self._make_together(queue, whole, replica, alone=alone)
            return
        try:
            model = self._make_alone(queue, alone)
        except BaseException as error:
            if layout.num_last:
                self._decline_last(error)
            raise
        if layout.num_last and self._resources.stop.is_requested:
            self._decline_last(RankError("the session stops"))
        elif layout.num_last:
            self._make_last(model)

    def _make_alone(self, queue: RankQueue, alone: Iterable[Assignment]) -> ContextParallelModel:
        """Load the model and work through `queue`, without other ranks."""
        with self._load_span():
            model = self._load()
        self._begin_measuring(model, is_start=True)
        self._work_through(queue, model, alone=alone)
        return model

    def _load_span(self) -> AbstractContextManager[None]:
        return self._events.span("load", synchronize=self._topology.synchronize)

    def _load(self) -> ContextParallelModel:
        takes_loras = any(run.plan.uses_loras for run in self._runs)
        return self._resources.loaded.load(
            self._number, [run.plan.config for run in self._runs], takes_loras=takes_loras
        )

    def _begin_measuring(self, model: Model, *, is_start: bool) -> None:
        """Note the model's optimizations. In a sweep over several models, means begin with the work of the first."""
        measurement = self._resources.measurement
        measurement.set_optimizations(self._group, model.applied_optimizations, model.skipped_optimizations)
        if is_start and self._number == 0:
            measurement.sampler.restart_means()

    def _make_together(
        self,
        queue: RankQueue,
        whole: ContextParallelModel,
        replica: Replica,
        of_what: str = "",
        alone: Iterable[Assignment] = (),
    ) -> None:
        """Work through `queue` with the other ranks of a replica whose process group is open."""
        try:
            kind = self._runs[0].plan.config.parallelism.context_kind
            words = whole.enable_context_parallel(replica.collectives, kind)
            leading = LeadingModel(whole, replica, words + of_what)
            self._begin_measuring(leading, is_start=not of_what)
            if replica.is_leader:
                self._work_through(queue, leading, replica.size, alone=alone)
            else:
                self._follow(whole, replica)
        except BaseException:
            replica.break_off()
            raise
        finally:
            whole.disable_context_parallel()
            replica.leave()

    def _follow(self, whole: ContextParallelModel, replica: Replica) -> None:
        resources = self._resources

        def note_error(order: WorkOrder, error: OSError) -> None:  # the leader finds it, too, and ends the run's work
            resources.measurement.lose("attempts", f"{order.directory.address}: {error}")

        attempts = AttemptLogs(resources.orders, resources.process, note_error)
        resources.stop.on_interruption = attempts.note_stop
        follow(whole, replica, self._events, attempts)

    def _make_last(self, whole: ContextParallelModel) -> None:
        """Make the last tasks, which are fewer than the ranks: several ranks make each of them together."""
        queue, replica = self._last()
        try:
            with self._events.span("wait", reason="others"), replica.loading():
                pass
        except RankError:  # a rank that failed in its own shard, or is lost; the summary has its error
            if replica.is_leader:
                self._work_through(queue, whole)
            return
        self._make_together(queue, whole, replica, f" (the last {self._layout.num_last})")

    def _decline_last(self, error: BaseException) -> None:
        """Tell the other ranks that this one will not take part in the last tasks."""
        with suppress(RankError, RuntimeError):  # the store itself may be lost
            queue, replica = self._last()
            replica.decline(error)
            if replica.is_leader:
                queue.give_up()

    def _last(self) -> tuple[RankQueue, Replica]:
        queue = self._tasks.last
        assert queue is not None
        name = replica_name(self._number, is_last=True)
        return queue, Replica.of(self._topology, self._layout.last_size, name)

    def _work_through(
        self, queue: RankQueue, model: Model, context_size: int = 1, *, alone: Iterable[Assignment] = ()
    ) -> None:
        """Make the tasks of `alone` one at a time, then those of `queue`, and write their results."""
        resources = self._resources
        provenance = {"model": self._runs[0].plan.config.model.name, "fluxexp": __version__}
        writer = ResultWriter(provenance, self._events, resources.on_record, resources.orders, resources.process)
        stops = lambda: resources.stop.is_requested  # noqa: E731
        resources.stop.on_interruption = writer.attempts.note_stop
        is_lost = False
        try:
            with _give_up_on_error(queue):
                worker = Worker(model, self._topology, writer, self._events, context_size=context_size, stops=stops)
                worker.run_alone(alone)
                worker.run(queue)
        except Exception as error:
            is_lost = is_device_lost(error)
            raise
        finally:
            resources.measurement.num_stolen += queue.num_stolen
            with self._events.span("wait", reason="write"):
                writer.close(is_device_lost=is_lost)
            resources.measurement.run_errors |= {number: str(error) for number, error in writer.errors.items()}
        if len(writer.errors) == len(self._group):
            queue.give_up()
            raise next(iter(writer.errors.values()))

    @property
    def _runs(self) -> list[PlannedRun]:
        return [self._session_plan.runs[number] for number in self._group]


@contextmanager
def _give_up_on_error(queue: RankQueue, is_own: bool = True) -> Generator[None]:
    """On an error, leave the rest of the shard to other ranks. `is_own` is False for a follower, which has no shard."""
    try:
        yield
    except BaseException:
        if is_own:
            with suppress(RankError, RuntimeError):  # the store itself may be lost
                queue.give_up()
        raise


def _expected_pixels(config: RunConfig) -> int:
    sampling = config.sampling
    return expected_pixels(sampling.height, sampling.width, sampling.max_pixels, config.model.resolution)
