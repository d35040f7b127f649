"""Run an experiment or a sweep. Everything that needs no torch is checked before torch is imported."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fluxexp.address import Address
from fluxexp.config import RunConfig
from fluxexp.errors import FluxexpError, MainRankError, RankError, SearchEnd, StorageError
from fluxexp.experiment.outcome import Outcome
from fluxexp.experiment.plan_preview import preview, preview_error
from fluxexp.experiment.planner import Planner
from fluxexp.imports import large_imports
from fluxexp.interruption import interruption
from fluxexp.plan import Plan
from fluxexp.plan.negative_prompts import unused_negative_prompt
from fluxexp.rank_environment import RankEnvironment
from fluxexp.result_note import note_result
from fluxexp.storage.run_directory import results_root

if TYPE_CHECKING:
    from fluxexp.experiment.session import Session
    from fluxexp.experiment.sweep import Sweep
    from fluxexp.parallel.topology import Topology


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """One point of a sweep: its config, or the error that prevents one."""

    overrides: Sequence[str]
    """The overrides that the user typed, for overrides.yaml."""
    config: RunConfig | None
    error: FluxexpError | None = None


def run_experiment(config: RunConfig, root: Address, overrides: Sequence[str], *, is_point: bool = False) -> Outcome:
    """Run `config`, or continue an earlier session.

    Args:
        config: of the run. With several ranks, all use the config of rank 0.
        root: parent of the run's directory, unless `output.dir` is set.
        overrides: what the user typed, for overrides.yaml.
        is_point: whether it is a point of a sweep whose points run one after the other (Hydra's own launcher).

    Raises:
        ConfigError: the dataset cannot be opened, a device does not exist, or negative prompts have no effect.
        StorageError: the directory belongs to another config, or cannot be written.
        RankError: ranks disagree, or a rank failed and the others could not do its work.
    """
    interruption.check()  # with Hydra's own launcher, several runs follow each other
    plans = [Planner(root)(config)] if _is_main() else None
    for plan in () if is_point else plans or ():
        if (unused := unused_negative_prompt(plan)) is not None:
            raise unused
    if config.debug.plan:
        for plan in plans or ():
            preview(plan)
        return Outcome(plans[0].directory.address if plans else root)

    for plan in plans or ():
        note_result(plan.directory.address)
    outcomes = _session(config, plans, root, [overrides], None).run()
    return outcomes[0] if outcomes else Outcome(root)


def run_sweep(
    points: Sequence[SweepPoint], root: Address, first: RunConfig | None = None, *, is_whole: bool = True
) -> list[Outcome]:
    """Run all points in one session, with one pool of tasks for each model. Returns the outcomes in order.

    If a point cannot be run, its outcome has the error, and the other points run. The other ranks need only one point
    with a config: they receive all points from rank 0.

    Args:
        points: of the sweep.
        root: parent of the directories, unless `output.dir` is set.
        first: the config with which the other ranks join, if no point has one. None in a search, whose other points
            are not known.
        is_whole: whether the sweep has no other points, for which negative prompts may be.

    Raises:
        RankError: ranks disagree, or a rank failed and the others could not do its work.
    """
    configs = [point.config for point in points if point.config is not None]
    if not configs:
        if first is not None and not first.debug.plan and RankEnvironment.from_environment().world_size > 1:
            _announce_nothing(first, root, _sweep(first, [], root, []))
        return [Outcome.failed(root, str(point.error)) for point in points]
    if not _is_main():
        if not configs[0].debug.plan:
            with suppress(MainRankError):  # no point can run: rank 0 prints the error
                _session(configs[0], None, root, [], None).run()
        return [Outcome(root) for _ in points]

    make_plan = Planner(root)
    planned = [_try_plan(point, make_plan) for point in points]
    if first is not None and is_whole:
        planned = _without_unused_prompts(planned)
    runs = _as_runs(planned)
    if configs[0].debug.plan:
        errors = {place: error for place, plan in runs.items() if (error := preview_error(plan))}
        outcomes = {place: _previewed(root, errors.get(place)) for place in runs}
    else:
        outcomes = _run_plans(points, planned, runs, root, configs[0])
    return _in_order(planned, outcomes, root)


def _run_plans(
    points: Sequence[SweepPoint],
    planned: Sequence[Plan | FluxexpError],
    runs: Mapping[int, Plan],
    root: Address,
    config: RunConfig,
) -> dict[int, Outcome]:
    """Run the plans of a sweep in one session. Returns the outcomes by the index of the run's first point."""
    unplanned = [
        (point.overrides, str(plan)) for point, plan in zip(points, planned, strict=True) if not isinstance(plan, Plan)
    ]
    plans = list(runs.values())
    sweep = _sweep(config, plans, root, unplanned)
    note_result(sweep.directory.address)
    if not plans:
        _announce_nothing(config, root, sweep)
        sweep.write(lambda: {}, [], [], None)
        return {}
    session = _session(config, plans, root, [points[place].overrides for place in runs], sweep)
    return dict(zip(runs, session.run(), strict=True))


def _announce_nothing(config: RunConfig, root: Address, sweep: Sweep) -> None:
    """Publish that no point can run, because the other ranks wait for a session."""
    with suppress(StorageError):
        _session(config, [], root, [], sweep).run()


def _in_order(planned: Sequence[Plan | FluxexpError], outcomes: Mapping[int, Outcome], root: Address) -> list[Outcome]:
    """The outcome of each point. Points of one directory share that of the first of them."""
    first_of = {place: alike[0] for alike in _by_directory(planned).values() for place in alike}
    return [
        outcomes[first_of[place]] if isinstance(plan, Plan) else Outcome.failed(root, str(plan))
        for place, plan in enumerate(planned)
    ]


def follow_search(config: RunConfig, root: Address) -> None:
    """On ranks above 0: work on each sweep of rank 0's search, until rank 0 calls `end_search`.

    Raises:
        RankError: see `run_sweep`.
    """
    with suppress(SearchEnd):
        while True:
            with suppress(MainRankError):  # a point cannot run: rank 0 prints the error and continues
                _session(config, None, root, [], None).run()


def end_search(config: RunConfig) -> None:
    """On rank 0: end the search on the other ranks. Waits for their answers, because rank 0 may host the store."""
    from fluxexp.experiment.rounds import wait_for_results

    topology = _announce_end(config)
    wait_for_results(topology, range(1, topology.world_size))


def interrupt_search(config: RunConfig) -> None:
    """On rank 0, after an interruption: end the search on the other ranks, if a session has begun. Does not wait."""
    if "fluxexp.parallel.topology" in sys.modules:
        with interruption.deferred(), suppress(RankError):  # the store is lost, so no rank waits
            _announce_end(config)


def _announce_end(config: RunConfig) -> Topology:
    from fluxexp.experiment.session_messages import SESSION, SessionAnnouncement
    from fluxexp.parallel.topology import join

    topology = join(config.parallelism)
    SESSION.publish(topology.coordinator, SessionAnnouncement(is_search_end=True))
    return topology


def _previewed(root: Address, error: FluxexpError | None) -> Outcome:
    return Outcome(root) if error is None else Outcome.failed(root, str(error))


def _session(
    config: RunConfig,
    plans: Sequence[Plan] | None,
    root: Address,
    overrides: Sequence[Sequence[str]],
    sweep: Sweep | None,
) -> Session:
    # Imported late, because torch takes seconds to import, and config errors must be reported before.
    with large_imports("fluxexp.experiment.session"):
        from fluxexp.experiment.engine import workforce_of
        from fluxexp.experiment.session import Session

    return Session(workforce_of(config, root), plans, Planner(root), overrides, sweep)


def _sweep(
    config: RunConfig, plans: Sequence[Plan], root: Address, unplanned: Sequence[tuple[Sequence[str], str]]
) -> Sweep:
    from fluxexp.experiment.sweep import Sweep

    parent = results_root(config.output, root)
    return Sweep.of(
        config.name, [plan.directory.name for plan in plans], parent, unplanned, retry_s=config.output.retry_s
    )


def _try_plan(point: SweepPoint, make_plan: Planner) -> Plan | FluxexpError:
    if point.config is None:
        assert point.error is not None
        return point.error
    try:
        return make_plan(point.config)
    except FluxexpError as error:
        return error


def _without_unused_prompts(planned: Sequence[Plan | FluxexpError]) -> list[Plan | FluxexpError]:
    """`planned`, with errors in place of points whose negative prompts are used at no point of the sweep."""
    if any(isinstance(plan, Plan) and plan.makes_second_passes for plan in planned):
        return list(planned)
    return [(unused_negative_prompt(plan) or plan) if isinstance(plan, Plan) else plan for plan in planned]


def _as_runs(planned: Sequence[Plan | FluxexpError]) -> dict[int, Plan]:
    """The runs of a sweep, by the index of their first point. Points that differ only in speed or counts are one run.

    A run has the largest number of samples, and of images per sample, of its points.
    """
    runs: dict[int, Plan] = {}
    for places in _by_directory(planned).values():
        plans = [plan for place in places if isinstance(plan := planned[place], Plan)]
        longest = max(plans, key=lambda plan: len(plan.dataset))
        most = max(plan.config.sampling.images_per_sample for plan in plans)
        sampling = replace(longest.config.sampling, images_per_sample=most)
        runs[places[0]] = replace(longest, config=replace(longest.config, sampling=sampling))
    return runs


def _by_directory(planned: Sequence[Plan | FluxexpError]) -> dict[Address, list[int]]:
    """Indices of the points that can be run, grouped by directory."""
    places: dict[Address, list[int]] = {}
    for place, plan in enumerate(planned):
        if isinstance(plan, Plan):
            places.setdefault(plan.directory.address, []).append(place)
    return places


def _is_main() -> bool:
    return RankEnvironment.from_environment().is_main
