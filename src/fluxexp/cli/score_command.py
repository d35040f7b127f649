"""The command line of `python -m fluxexp.score`: a directory, and what of the config scoring goes by."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fluxexp.cli.compose import check_command
from fluxexp.cli.exit import die, leave_process_group
from fluxexp.cli.location import config_directory
from fluxexp.errors import ConfigError, FluxexpError, Problem
from fluxexp.experiment.rescoring import Rescoring, score_again

_GROUPS = ("metrics", "cost", "parallelism", "report")


def score_main() -> None:
    """Score a run or a sweep. Exits 1 where scoring did not come to its end, 2 for what cannot be scored."""
    parser = argparse.ArgumentParser(
        prog="python -m fluxexp.score",
        description="Score what a run or a sweep has made; what is scored already is left as it is.",
    )
    parser.add_argument("directory", type=Path, help="of a run, or of a sweep (the one with a sweep.json)")
    parser.add_argument(
        "overrides",
        nargs="*",
        help="metrics=full, metrics.quality=lpips, cost.usd_per_gpu_hour=2.5; default: as before",
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
    """The parts of the config that were typed; the others stay those of the runs."""
    typed = {override.lstrip("+~").partition("=")[0].partition(".")[0] for override in overrides}
    problems = [
        Problem(name, "has nothing to do with scoring", hint=f"groups here: {', '.join(_GROUPS)}")
        for name in sorted(typed - set(_GROUPS))
    ]
    if problems:
        raise ConfigError(problems)
    checked = check_command(config_directory(), "config", overrides, multirun=False)
    assert checked is not None
    return Rescoring({name: getattr(checked.config, name) for name in typed}, checked.config.parallelism)
