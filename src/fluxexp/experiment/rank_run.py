"""One rank's part of a session: load each model, work through the share, help others, and say how it went."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fluxexp import __version__
from fluxexp.config.schema import ParallelismMode, RunConfig
from fluxexp.data import expected_pixels
from fluxexp.errors import FluxexpError, RankError
from fluxexp.experiment.pool import Pool, TaskQueue
from fluxexp.experiment.session_plan import SessionPlan
from fluxexp.experiment.work_layout import WorkLayout
from fluxexp.models.base import ContextParallelModel, Model
from fluxexp.models.loading.model_loader import load_context_parallel_model
from fluxexp.parallel.replica import Replica
from fluxexp.parallel.sharding import static_shard
from fluxexp.parallel.topology import Topology
from fluxexp.records import Record
from fluxexp.telemetry import DeviceSampler, Event, EventLog, RankTotals, part_of_run, read_events
from fluxexp.worker import LeadingModel, PreparedSample, ResultWriter, Worker, WorkOrder, follow

OnImage = Callable[[WorkOrder, Record, PreparedSample], None]


class RankRun:
    """What one rank does and measures. `figures` may be called from another thread while `work` runs."""

    def __init__(self, topology: Topology, session_plan: SessionPlan, on_image: OnImage | None = None) -> None:
        self._topology = topology
        self._agreement = session_plan
        self._on_image = on_image
        self._totals = RankTotals()
        self._run_totals = [RankTotals() for _ in session_plan.runs]
        self._orders = [
            WorkOrder(
                number=number,
                config=run.plan.config,
                dataset=run.plan.dataset,
                directory=run.plan.directory,
                attempts=run.attempts,
                is_alone=session_plan.sweep is None,
            )
            for number, run in enumerate(session_plan.runs)
        ]
        self._sampler = DeviceSampler.of(topology.device_uuid)
        self._applied: dict[int, list[str]] = {}
        self._skipped: dict[int, dict[str, str]] = {}
        self._run_errors: dict[int, str] = {}
        self._num_stolen = 0
        self._next_rank = 0
        self._finished_s: float | None = None

    def work(self) -> dict[str, Any]:
        """Make this rank's tasks; how it went, as JSON-able values. An error ends this rank's work, not the run's."""
        error: str | None = None
        events = EventLog(
            self._agreement.directory / "events" / f"rank-{self._topology.rank:04d}-{self._agreement.session}.jsonl",
            listeners=[self._totals.add, self._add_to_runs],
        )
        with events, self._sampler:
            for number, group in enumerate(self._agreement.groups()):
                error = self._try_group(events, number, group) or error
        if self._agreement.sweep is not None:
            self._split_events(events.path)
        self._finished_s = time.time()
        return self._result(error)

    def _split_events(self, path: Path) -> None:
        """Leave each run of a sweep its own part of this rank's spans."""
        events = read_events(path)
        for order in self._orders:
            parts = [part for event in events if (part := part_of_run(event, order.number))]
            if parts:
                with EventLog(order.directory.events / path.name) as log:
                    for part in parts:
                        log.write(part)

    def figures(self) -> dict[str, Any]:
        """Where this rank stands."""
        reading = self._sampler.latest()
        return {
            **self._totals.snapshot(),
            "utilisation": reading.utilisation if reading else None,
            "memory_gib": reading.memory_gib if reading else None,
            "finished_s": self._finished_s,
        }

    def _try_group(self, events: EventLog, number: int, group: Sequence[int]) -> str | None:
        try:
            self._make_group(events, number, group)
        except FluxexpError as raised:
            error = str(raised)
        except Exception as raised:
            traceback.print_exc()  # not foreseen: whoever looks into it needs the place
            error = f"{type(raised).__name__}: {raised}"
        else:
            return None
        self._run_errors = dict.fromkeys(group, error) | self._run_errors
        return error

    def _make_group(self, events: EventLog, number: int, group: Sequence[int]) -> None:
        """The tasks of runs that share a model: the own share, then what others have not begun."""
        config = self._agreement.runs[group[0]].plan.config
        spread = self._agreement.work_layouts[number]
        pool = make_pool(self._agreement, group, self._orders, spread.num_replicas, slice(-spread.num_last or None))
        place = self._place(spread, config.parallelism.mode)
        if not static_shard(len(pool.entries), len(pool.shares), place):
            return
        queue = pool.queue(self._topology.coordinator, place, events, f"work/{number}")
        if spread.context_size == 1:
            try:
                model = self._make_alone(events, number, group, queue)
            except BaseException as error:
                if spread.num_last:
                    self._decline_last(events, number, group, error)
                raise
            if spread.num_last:
                self._make_last(events, number, group, model)
            return
        replica = Replica.of(self._topology, spread.context_size, f"replica/{number}")
        span = events.span("load", synchronise=self._topology.synchronise)
        with span, _given_up(queue, replica.is_leader), replica.loading():
            whole = self._load(group)
        self._make_together(events, number, group, queue, whole, replica)

    def _make_alone(
        self, events: EventLog, number: int, group: Sequence[int], queue: TaskQueue
    ) -> ContextParallelModel:
        """Load a model, and work through `queue` with it."""
        with events.span("load", synchronise=self._topology.synchronise):
            model = self._load(group)
        self._note(group, model)
        if number == 0:  # of a sweep over several models: from the first one's work on
            self._sampler.restart_mean()
        self._work_through(events, group, queue, model)
        return model

    def _load(self, group: Sequence[int]) -> ContextParallelModel:
        """The model of runs that share one, with room for the largest image of any."""
        configs = [self._agreement.runs[number].plan.config for number in group]
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
        """Work through `queue` with the other ranks of a replica whose links are open."""
        try:
            words = whole.enable_context_parallel(
                replica.collectives, self._agreement.runs[group[0]].plan.config.parallelism.context_kind
            )
            leading = LeadingModel(whole, replica, words + of_what)
            self._note(group, leading)
            if number == 0 and not of_what:
                self._sampler.restart_mean()
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
        """The tasks that are too few for all ranks: several make each of them together."""
        queue, replica = self._last(events, number, group)
        try:
            with events.span("wait", reason="others"), replica.loading():
                pass
        except RankError:  # one that failed in its own share: it is in the summary
            if replica.is_leader:
                self._work_through(events, group, queue, whole)
            return
        num_last = self._agreement.work_layouts[number].num_last
        self._make_together(events, number, group, queue, whole, replica, f" (the last {num_last})")

    def _decline_last(self, events: EventLog, number: int, group: Sequence[int], error: BaseException) -> None:
        """Tell the others that this rank will not be there at the end."""
        with suppress(RankError, RuntimeError):  # the store may be what was lost
            queue, replica = self._last(events, number, group)
            replica.decline(error)
            if replica.is_leader:
                queue.give_up()

    def _last(self, events: EventLog, number: int, group: Sequence[int]) -> tuple[TaskQueue, Replica]:
        spread, topology = self._agreement.work_layouts[number], self._topology
        replicas, part = topology.world_size // spread.last_size, slice(-spread.num_last, None)
        pool = make_pool(self._agreement, group, self._orders, replicas, part)
        name = f"work/{number}/last"
        queue = pool.queue(topology.coordinator, topology.rank // spread.last_size, events, name)
        return queue, Replica.of(topology, spread.last_size, f"replica/{number}/last")

    def _note(self, group: Sequence[int], model: Model) -> None:
        self._applied |= dict.fromkeys(group, model.applied_optimizations)
        self._skipped |= dict.fromkeys(group, model.skipped_optimizations)

    def _work_through(
        self,
        events: EventLog,
        group: Sequence[int],
        queue: TaskQueue,
        model: Model,
        context_size: int = 1,
    ) -> None:
        """Make what `queue` holds."""
        provenance = {"model": self._orders[group[0]].config.model.name, "fluxexp": __version__}
        writer = ResultWriter(provenance, events, self._count)
        try:
            with _given_up(queue):
                Worker(model, self._topology, writer, events, context_size=context_size).run(queue)
        finally:
            self._num_stolen += queue.num_stolen
            with events.span("wait", reason="write"):
                writer.close()
            self._run_errors |= {number: str(error) for number, error in writer.errors.items()}
        if len(writer.errors) == len(group):
            queue.give_up()
            raise next(iter(writer.errors.values()))

    def _place(self, spread: WorkLayout, mode: ParallelismMode) -> int:
        """This rank's place among those that work on a group: groups that do not need all ranks are laid on others."""
        world_size = self._topology.world_size
        if spread.num_ranks == world_size or mode == "single":
            return self._topology.rank // spread.context_size
        place = (self._topology.rank - self._next_rank) % world_size
        self._next_rank += spread.num_ranks
        return place

    def _count(self, order: WorkOrder, record: Record, item: PreparedSample | None) -> None:
        for totals in (self._totals, self._run_totals[order.number]):
            totals.count(images=int(record.status == "ok"), failed=int(record.status == "failed"))
        if item is not None and self._on_image is not None:
            self._on_image(order, record, item)

    def _add_to_runs(self, event: Event) -> None:
        """Each run's totals take in their part of a span that worked for several."""
        for number, totals in enumerate(self._run_totals):
            part = event if self._agreement.sweep is None else part_of_run(event, number)
            if part is not None:
                totals.add(part)

    def _result(self, error: str | None) -> dict[str, Any]:
        peak_gib = self._topology.peak_memory_gib()
        device = self._sampler.figures()
        common = {
            "rank": self._topology.rank,
            "device": self._topology.device_name,
            **device,
            "memory_peak_gib": peak_gib if peak_gib is not None else device["memory_peak_gib"],
            "finished_s": self._finished_s,
        }
        busy_s = self._totals.snapshot()["busy_s"]
        return {
            **common,
            **self._totals.snapshot(),
            "num_stolen": self._num_stolen,
            "error": error,
            "runs": [
                {
                    **common,
                    **totals.snapshot(),
                    "energy_j": _part(device["energy_j"], totals.snapshot()["busy_s"], busy_s),
                    "num_stolen": None,
                    "applied_optimizations": self._applied.get(number, []),
                    "skipped_optimizations": self._skipped.get(number, {}),
                    "error": self._run_errors.get(number),
                }
                for number, totals in enumerate(self._run_totals)
            ],
        }


def _part(whole: float | None, part_s: float, whole_s: float) -> float | None:
    """A run's part of what a device used, by the time that the device worked for it."""
    return whole * part_s / whole_s if whole is not None and whole_s > 0 else None


@contextmanager
def _given_up(queue: TaskQueue, is_own: bool = True) -> Generator[None]:
    """On an error the others take what is left of a queue that is this rank's own."""
    try:
        yield
    except BaseException:
        if is_own:
            with suppress(RankError, RuntimeError):  # the store may be what was lost
                queue.give_up()
        raise


def make_pool(
    session_plan: SessionPlan, group: Sequence[int], orders: Sequence[WorkOrder], num_replicas: int, part: slice
) -> Pool:
    """The pool of a part of the runs `group`, the same on every rank."""
    runs = [session_plan.runs[number] for number in group]
    pending = [run.pending for run in runs]
    return Pool.of([orders[number] for number in group], [run.plan for run in runs], pending, num_replicas, part)


def no_result(topology: Topology, error: str) -> dict[str, Any]:
    """The result of a rank that never came to work, and knows of no runs."""
    return {
        **RankTotals().snapshot(),
        "rank": topology.rank,
        "device": topology.device_name,
        **DeviceSampler.of(None).figures(),
        "finished_s": time.time(),
        "num_stolen": 0,
        "error": error,
        "runs": [],
    }


def _expected_pixels(config: RunConfig) -> int:
    sampling = config.sampling
    return expected_pixels(sampling.height, sampling.width, sampling.max_pixels, config.model.resolution)
