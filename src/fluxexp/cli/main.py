"""`main`: check the command, let Hydra run it, and turn errors into exit codes and messages."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

from hydra._internal.utils import run_and_report
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from fluxexp.cli.arguments import only_shows, parse_arguments, wants_sweep
from fluxexp.cli.compose import CheckedCommand, check_command, to_run_config
from fluxexp.cli.exit import die, leave_process_group, print_error, rank
from fluxexp.cli.exit_codes import ExitCode, exit_code_of, worst
from fluxexp.cli.hydra_app import Compose, composed_once, open_hydra
from fluxexp.cli.location import MAIN_CONFIG, Place, config_directory
from fluxexp.cli.overrides import parse_overrides
from fluxexp.cli.show import show
from fluxexp.cli.sweep_jobs import Composer
from fluxexp.cli.sweep_part import SweepPart, refuse_part
from fluxexp.config import RunConfig, check, fingerprint
from fluxexp.config.optimization_kinds import settled
from fluxexp.errors import ConfigError, FluxexpError
from fluxexp.experiment import (
    Outcome,
    SweepPoint,
    end_search,
    follow_search,
    interrupt_search,
    run_experiment,
    run_sweep,
)
from fluxexp.interruption import Interrupted, interruption
from fluxexp.rank_environment import RankEnvironment
from fluxexp.storage.run_directory import RUNS_ROOT, SWEEPS_ROOT
from fluxexp.telemetry import say


def main() -> None:
    """Run the command line. It ends with one of `ExitCode`."""
    interruption.listen()
    # Without it, the store of torch prints a C++ stack for each rank that ends; fluxexp has messages of its own.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        _main()
    except KeyboardInterrupt:
        if rank() == 0:
            say("\ninterrupted; run the same command again to continue", urgent=True)
        leave_process_group()
        sys.exit(ExitCode.INTERRUPTED)


def _main() -> None:
    # Print each line at once, also into a file or a launcher's pipe.
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    try:
        RankEnvironment.from_environment()  # wrong launcher variables are reported before config errors
        args = parse_arguments()
        place = Place(config_directory(), args.config_name or MAIN_CONFIG, args.config_dir)
        if only_shows(args):
            if rank() == 0:
                show(place, args)
            return
        checked = check_command(
            place.directory, place.config_name, args.overrides, wants_sweep(args), config_dir=place.config_dir
        )
        refuse_part(args.part, is_pool=checked.is_pool, is_search=checked.is_search)
    except FluxexpError as error:
        die(error, alone=False)
    is_follower = (checked.is_search or checked.is_pool) and rank() != 0
    sys.exit(_follow(checked) if is_follower else _run(place, args.overrides, checked, args.part))


def _follow(checked: CheckedCommand) -> int:
    """Run a sweep or a search on a rank above 0. Only rank 0 composes its points, and all ranks work on them.

    Returns the exit code.
    """
    try:
        if checked.is_search:
            follow_search(checked.config, SWEEPS_ROOT)
        else:
            run_sweep([SweepPoint((), checked.config)], SWEEPS_ROOT)
    except FluxexpError as error:
        die(error, alone=True)
    finally:
        leave_process_group()
    return _follower_code()


def _follower_code() -> int:
    """The exit code of a rank above 0 that made its part. Only rank 0 knows how the run ended."""
    return ExitCode.INTERRUPTED if interruption.requested is not None else ExitCode.COMPLETE


def _run(place: Place, typed: Sequence[str], checked: CheckedCommand, part: SweepPart | None) -> int:
    """Let Hydra run the command, or `part` of a sweep. Returns the exit code."""
    exit_codes = [0]

    def job(config: Any) -> None:
        exit_codes.append(_run_job(config, typed))

    def run_all(jobs: Sequence[list[str]], compose_job: Compose) -> list[float | None]:
        composer = Composer(compose_job, group_options, checked.params)
        outcomes = _run_sweep(jobs, composer, None if checked.is_search else checked.config, part)
        exit_codes.extend(exit_code_of(outcome) for group in outcomes for outcome in group)
        if checked.is_search:
            interruption.check()  # ends the search
        name = checked.config.objective
        # A search has one outcome for each job. A job that is in another part of the sweep has none.
        return [group[0].objective(name) if name is not None and group else None for group in outcomes]

    job.run_all = run_all  # type: ignore[attr-defined]  # what the launcher of src/hydra_plugins calls
    if checked.is_search and rank() == 0:
        SWEEPS_ROOT.local_path().mkdir(exist_ok=True)  # Optuna's sweeper leaves its own results there
    mode = RunMode.MULTIRUN if checked.is_sweep else RunMode.RUN
    overrides = [*checked.overrides, f"hydra.mode={mode.name}"]
    try:
        with open_hydra(place) as app:
            group_options = app.group_options(parse_overrides(typed))
            start = app.hydra.multirun if checked.is_sweep else app.hydra.run
            start = partial(start, config_name=place.config_name, task_function=job, overrides=overrides)
            with composed_once():
                run_and_report(lambda: _start(start))
        if checked.is_search:
            end_search(checked.config)
    except Interrupted:
        if checked.is_search:
            interrupt_search(checked.config)
        raise
    finally:
        leave_process_group()
    return worst(exit_codes if rank() == 0 else [_follower_code(), *exit_codes])


def _start(start: Callable[[], object]) -> None:
    """Start Hydra. A job that only some combination of a sweep's files makes can be refused as late as here."""
    try:
        start()
    except ConfigError as error:
        die(error, alone=True)


def _run_job(config: Any, overrides: Sequence[str]) -> int:
    """Run a single run, or one job of a sweep with Hydra's basic launcher."""
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    job_overrides = list(HydraConfig.get().overrides.task) if in_sweep else list(overrides)
    try:
        run_config = to_run_config(config)
        check(run_config)
        root = SWEEPS_ROOT if in_sweep else RUNS_ROOT
        outcome = run_experiment(run_config, root, job_overrides, is_point=in_sweep)
    except FluxexpError as error:
        if not in_sweep:
            die(error, alone=True)
        print_error(error)
        return error.exit_code
    return exit_code_of(outcome)


def _run_sweep(
    jobs: Sequence[list[str]], composer: Composer, first: RunConfig | None, part: SweepPart | None
) -> list[list[Outcome]]:
    """Run all jobs of a sweep in one session, on rank 0. Returns the outcomes of each job: of its points.

    Args:
        jobs: their overrides.
        composer: composes them.
        first: the config with which the other ranks join if no point has one; None in a search, which they follow.
        part: of the points; None for all.
    """
    points_of = [list(_points(job, composer)) for job in jobs]
    if part is not None:
        num_all, points_of = sum(map(len, points_of)), part.of(points_of, _run_of)
        say(f"part       {part}: {sum(map(len, points_of))} of {num_all} points")
    points = [point for group in points_of for point in group]
    try:
        outcomes = run_sweep(points, SWEEPS_ROOT, first, is_whole=part is None)
    except FluxexpError as error:
        die(error, alone=True)
    _say_failed_points(points, outcomes)
    rest = iter(outcomes)
    return [list(islice(rest, len(group))) for group in points_of]


def _run_of(point: SweepPoint) -> Hashable:
    """What points have in common that are one run, which only one session at a time may use."""
    if point.config is None:
        return tuple(point.overrides)
    config = settled(point.config, has_gpu=True)  # any value that all elements of a job array share
    return config.name, config.output.dir, fingerprint(config)


def _say_failed_points(points: Sequence[SweepPoint], outcomes: Sequence[Outcome]) -> None:
    failed: dict[str, list[str]] = {}
    for point, outcome in zip(points, outcomes, strict=True):
        if outcome.error is not None:
            failed.setdefault(outcome.error, []).append(" ".join(point.overrides))
    for error_text, names in failed.items():
        others = f" and {len(names) - 1} other points" if len(names) > 1 else ""
        say(f"fluxexp: {names[0]}{others} cannot be run\n{error_text}", urgent=True)


def _points(job: list[str], composer: Composer) -> Iterator[SweepPoint]:
    """Compose and check the points of a job: one, or those of the sweep in its experiment."""
    try:
        jobs = list(composer.jobs(job))
    except FluxexpError as error:
        yield SweepPoint(job, None, error)
        return
    for overrides in jobs:
        try:
            config = to_run_config(composer.config(overrides))
            check(config)
        except FluxexpError as error:
            yield SweepPoint(overrides, None, error)
        else:
            yield SweepPoint(overrides, config)
