"""`main`: check the command, let Hydra run it, and turn errors into exit codes and messages."""

from __future__ import annotations

import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from fluxexp.cli.compose import CheckedCommand, Composer, check_command, to_run_config
from fluxexp.cli.exit import die, leave_process_group, print_error, rank
from fluxexp.cli.location import config_directory
from fluxexp.config import RunConfig, check
from fluxexp.errors import ConfigError, FluxexpError
from fluxexp.experiment import Outcome, SweepPoint, end_search, follow_search, run_experiment, run_sweep
from fluxexp.rank_environment import RankEnvironment
from fluxexp.storage.run_directory import RUNS_ROOT, SWEEPS_ROOT
from fluxexp.telemetry import say

Jobs = Sequence[tuple[list[str], Callable[[], Any]]]
"""The jobs of a sweep: the overrides of each, and a function that composes its config."""
EXIT_INCOMPLETE = 1
"""Some tasks were not tried. The same command continues the run."""
EXIT_FAILED_TASKS = 3
"""The run is complete, but some tasks failed."""
_EXIT_CODES = {
    "complete": 0,
    "incomplete": EXIT_INCOMPLETE,
    "failed": ConfigError.exit_code,
    "complete_with_failures": EXIT_FAILED_TASKS,
}
_CONFIG_NAME = "config"


def main() -> None:
    """Run the command line.

    Exit codes: 0 success, 1 incomplete run, 2 config error, 3 failed tasks, 130 and 143 interrupted.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        _main()
    except KeyboardInterrupt:
        if rank() == 0:
            say("\ninterrupted; run the same command again to continue", urgent=True)
        leave_process_group()
        sys.exit(130)


def _main() -> None:
    # Print each line at once, also into a file or a launcher's pipe.
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    args = get_args_parser().parse_args()
    directory = config_directory()
    only_shows = _only_shows(args)
    try:
        RankEnvironment.from_environment()  # wrong launcher variables are reported before config errors
        overrides = list(args.overrides) + _search_path(args)
        config_name = args.config_name or _CONFIG_NAME
        checked = check_command(directory, config_name, overrides, args.multirun, will_run=not only_shows)
    except FluxexpError as error:
        die(error, alone=False)
    if checked is None:
        if rank() == 0:
            hydra.main(config_path=str(directory), config_name=_CONFIG_NAME, version_base="1.3")(_no_task)()
        return
    sys.exit(_follow(checked.config) if checked.is_search and rank() else _run(directory, args.overrides, checked))


def _only_shows(args: Namespace) -> bool:
    """Whether the command only shows something (`--help`, `--cfg`): Hydra answers it, and nothing runs."""
    shows = (args.help, args.hydra_help, args.cfg, args.info, args.shell_completion)
    return any(bool(flag) for flag in shows)


def _no_task(_: Any) -> None:
    raise AssertionError("Hydra shows the config and runs nothing")


def _search_path(args: Namespace) -> list[str]:
    if not args.config_dir:
        return []
    return [f"hydra.searchpath=[file://{Path(args.config_dir).resolve()}]"]


def _follow(config: RunConfig) -> int:
    """Run a search on a rank above 0: only rank 0 runs the sweeper, and all ranks work on its points."""
    try:
        follow_search(config, SWEEPS_ROOT)
    except FluxexpError as error:
        die(error, alone=True)
    finally:
        leave_process_group()
    return 0


def _run(directory: Path, overrides: Sequence[str], checked: CheckedCommand) -> int:
    exit_codes = [0]

    def job(config: Any) -> None:
        exit_codes.append(_run_job(config, overrides))

    def run_all(jobs: Jobs) -> list[float | None]:
        outcomes = _run_sweep(jobs)
        exit_codes.extend(_EXIT_CODES[outcome.status] for outcome in outcomes)
        name = checked.config.objective
        return [None if name is None else outcome.objective(name) for outcome in outcomes]

    job.run_all = run_all  # type: ignore[attr-defined]  # what the launcher of src/hydra_plugins calls
    if checked.is_search and rank() == 0:
        SWEEPS_ROOT.local_path().mkdir(exist_ok=True)  # Optuna's sweeper leaves its own results there
    try:
        hydra.main(config_path=str(directory), config_name=_CONFIG_NAME, version_base="1.3")(job)()
        if checked.is_search:
            end_search(checked.config)
    finally:
        leave_process_group()
    return max(exit_codes)


def _run_job(config: Any, overrides: Sequence[str]) -> int:
    """Run a single run, or one job of a sweep with Hydra's basic launcher."""
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    job_overrides = list(HydraConfig.get().overrides.task) if in_sweep else list(overrides)
    try:
        run_config = to_run_config(config)
        check(run_config)
        outcome = run_experiment(run_config, SWEEPS_ROOT if in_sweep else RUNS_ROOT, job_overrides)
    except FluxexpError as error:
        if not in_sweep:
            die(error, alone=True)
        print_error(error)
        return error.exit_code
    return _EXIT_CODES[outcome.status]


def _run_sweep(jobs: Jobs) -> list[Outcome]:
    """Run all jobs of a sweep in one session."""
    points = _points(jobs)
    # Only rank 0 needs all configs. Another rank needs one, to join rank 0.
    wanted = list(points) if rank() == 0 else list(islice((point for point in points if point.config), 1))
    try:
        outcomes = run_sweep(wanted, SWEEPS_ROOT)
    except FluxexpError as error:
        die(error, alone=True)
    if rank() != 0:
        return [Outcome(SWEEPS_ROOT) for _ in jobs]
    failed: dict[str, list[str]] = {}
    for point, outcome in zip(wanted, outcomes, strict=True):
        if outcome.error is not None:
            failed.setdefault(outcome.error, []).append(" ".join(point.overrides))
    for error_text, names in failed.items():
        others = f" and {len(names) - 1} other points" if len(names) > 1 else ""
        say(f"fluxexp: {names[0]}{others} cannot be run\n{error_text}", urgent=True)
    return outcomes


def _points(jobs: Jobs) -> Iterator[SweepPoint]:
    """Compose and check the points of a sweep, one after the other."""
    composer = Composer()
    for overrides, compose in jobs:
        try:
            config = to_run_config(composer(overrides, compose))
            check(config)
        except FluxexpError as error:
            yield SweepPoint(overrides, None, error)
        else:
            yield SweepPoint(overrides, config)


def _terminate(signum: int, _: FrameType | None) -> NoReturn:
    """Exit through all `finally` blocks. A launcher sends SIGTERM to the other ranks when one fails."""
    raise SystemExit(128 + signum)
