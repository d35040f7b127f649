"""The command line of `python -m fluxexp.score`: a directory, and overrides of the config groups for scoring."""

from __future__ import annotations

import argparse
import sys

from fluxexp.address import Address
from fluxexp.cli.compose import check_command
from fluxexp.cli.exit import die, leave_process_group
from fluxexp.cli.location import MAIN_CONFIG, config_directory
from fluxexp.errors import ConfigError, FluxexpError, Problem
from fluxexp.experiment.rescoring import Rescoring, score_again
from fluxexp.storage.result_files import SWEEP

_GROUPS = ("metrics", "cost", "parallelism", "report")


def score_main() -> None:
    """Score a run or a sweep. Exits with 1 if scoring did not finish, with 2 if the directory cannot be scored."""
    parser = argparse.ArgumentParser(
        prog="python -m fluxexp.score",
        description="Score the images of a run or a sweep. Images that already have scores are skipped.",
    )
    parser.add_argument("directory", type=Address.of, help=f"directory of a run, or of a sweep (it has a {SWEEP})")
    parser.add_argument(
        "overrides",
        nargs="*",
        help="metrics=full, metrics.quality=lpips, cost.usd_per_gpu_hour=2.5; default: the config of the run",
    )
    args = parser.parse_args()
    try:
        is_whole = score_again(args.directory, _rescoring(args.overrides))
    except FluxexpError as error:
        die(error, alone=True)
    finally:
        leave_process_group()
    sys.exit(0 if is_whole else 1)


def _rescoring(overrides: list[str]) -> Rescoring:
    """The config groups that the user typed. Other groups keep the values of the runs."""
    typed = {override.lstrip("+~").partition("=")[0].partition(".")[0] for override in overrides}
    problems = [
        Problem(name, "has no effect on scoring", hint=f"allowed groups: {', '.join(_GROUPS)}")
        for name in sorted(typed - set(_GROUPS))
    ]
    if problems:
        raise ConfigError(problems)
    checked = check_command(config_directory(), MAIN_CONFIG, overrides, multirun=False)
    return Rescoring({name: getattr(checked.config, name) for name in typed}, checked.config.parallelism)
