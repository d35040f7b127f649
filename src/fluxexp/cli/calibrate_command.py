"""The command line of `python -m fluxexp.calibrate`: measure and store the magnitude ratios that MagCache needs."""

from __future__ import annotations

import argparse
import json

from fluxexp.cli.compose import check_command
from fluxexp.cli.exit import die, leave_process_group
from fluxexp.cli.location import MAIN_CONFIG, config_directory
from fluxexp.errors import ConfigError, FluxexpError, Problem
from fluxexp.experiment.calibration import calibrate
from fluxexp.rank_environment import RankEnvironment
from fluxexp.telemetry import say

_SAMPLES = 8


def calibrate_main() -> None:
    """Measure, store and print the ratios. Exits with 2 if the config cannot be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m fluxexp.calibrate",
        description="Measure the magnitude ratios that optimization/step_cache=magcache uses, for one model, "
        "scheduler and number of steps, and store them in the user's cache directory. "
        "It accepts the same overrides as `python -m fluxexp`.",
    )
    parser.add_argument("--samples", type=int, default=_SAMPLES, help=f"number of samples to use (default: {_SAMPLES})")
    parser.add_argument("overrides", nargs="*", help="+experiment=fill model=flux_fill sampling.steps=28 ...")
    args = parser.parse_args()
    if args.samples < 1:
        parser.error("--samples must be at least 1")
    try:
        _calibrate(args.overrides, args.samples)
    except FluxexpError as error:
        die(error, alone=True)
    finally:
        leave_process_group()


def _calibrate(overrides: list[str], num_samples: int) -> None:
    world_size = RankEnvironment.from_environment().world_size
    if world_size > 1:
        raise ConfigError(
            Problem(
                "number of processes",
                "must be 1 for fluxexp.calibrate",
                world_size,
                "start it without a launcher",
            )
        )
    checked = check_command(config_directory(), MAIN_CONFIG, overrides, multirun=False)
    file = calibrate(checked.config, num_samples)
    say(f"ratios     {' '.join(f'{ratio:.4f}' for ratio in json.loads(file.read_text(encoding='utf-8')))}")
    say(f"saved in   {file}")
