"""The command line of a gate, and its exit codes."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, NoReturn

from fluxexp.address import Address
from fluxexp.errors import ComparisonError, ConfigError, Problem
from fluxexp.gate.gate_metrics import GateMetric, gate_metric

_DESCRIPTION = """\
Is the candidate still as good as the reference? Both are runs of the same samples and noise (docs/gate.md).

exit codes:
  0   pass: with the given confidence, no metric is worse by more than its tolerance
  1   fail: a metric is worse by more than its tolerance, or tasks of the candidate failed
  2   undecided: more samples are needed, and the output says how many
  64  the command is wrong
  65  the runs cannot be compared: no run, no common images, a missing score
  70  an unexpected error
"""


class GateExit(IntEnum):
    """The exit codes of `python -m fluxexp.gate`. From 64 on they are those of sysexits.h."""

    PASS = 0
    FAIL = 1
    UNDECIDED = 2
    USAGE = 64
    DATA = ComparisonError.exit_code
    SOFTWARE = 70


@dataclass(frozen=True, slots=True)
class GateCommand:
    """What the user asks for."""

    candidate: Address
    reference: Address
    metrics: Sequence[GateMetric]
    """Empty: the quality metric of the runs."""
    tolerance: float | None
    """Of the quality metric, if `metrics` is empty."""
    level: float
    json: str | None
    """A file, or `-` for the standard output."""
    junit: Path | None
    lpips_weights: str | None


class _Parser(argparse.ArgumentParser):
    """A parser whose errors do not exit with 2, which means undecided."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(GateExit.USAGE, f"{self.prog}: error: {message}\n")


class _Tolerance(argparse.Action):
    """Gives a tolerance to the metric before it."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        metrics: list[list[Any]] = namespace.metric or []
        if not metrics:
            if namespace.tolerance is not None:
                parser.error("--tolerance is given twice. Put each --tolerance after its --metric")
            namespace.tolerance = values
        elif metrics[-1][1] is not None:
            parser.error(f"--metric {metrics[-1][0]} has two tolerances")
        else:
            metrics[-1][1] = values


class _Metric(argparse.Action):
    """Adds a metric without a tolerance."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        namespace.metric = [*(namespace.metric or []), [values, None]]


def parse_command(arguments: Sequence[str] | None = None) -> GateCommand:
    """Parse the command line. A mistake ends the program with exit code 64."""
    parser = _Parser(
        prog="python -m fluxexp.gate",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("candidate", type=Address.of, metavar="CANDIDATE", help="directory of the run to judge")
    parser.add_argument("reference", type=Address.of, metavar="REFERENCE", help="directory of the run that is good")
    parser.add_argument(
        "--metric", action=_Metric, metavar="NAME", help="a metric to check, repeatable; default: the quality metric"
    )
    parser.add_argument(
        "--tolerance",
        action=_Tolerance,
        type=_tolerance,
        metavar="X",
        help="how much worse the metric before it may be; default: that of docs/metrics.md",
    )
    parser.add_argument("--level", type=_level, default=0.95, help="confidence of each verdict; default: 0.95")
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON; - prints it instead of the table")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write a JUnit XML file")
    parser.add_argument(
        "--lpips-weights", metavar="FILE", help="AlexNet's state dict for lpips_to_reference; default: as the runs say"
    )
    args = parser.parse_args(arguments)
    if args.metric and args.tolerance is not None:
        parser.error("--tolerance comes before the first --metric. Put it after the --metric that it belongs to")
    return GateCommand(
        args.candidate,
        args.reference,
        _metrics(parser, args.metric or []),
        args.tolerance,
        args.level,
        args.json,
        args.junit,
        args.lpips_weights,
    )


def _metrics(parser: argparse.ArgumentParser, asked: Sequence[Sequence[Any]]) -> list[GateMetric]:
    names = [name for name, _ in asked]
    problems = [Problem("--metric", "is given twice", name) for name in dict.fromkeys(names) if names.count(name) > 1]
    if problems:
        parser.error(str(problems[0]))
    try:
        return [gate_metric(name, tolerance) for name, tolerance in asked]
    except ConfigError as error:
        parser.error(str(error).strip())


def _tolerance(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text} must be a number from 0 on")
    return value


def _level(text: str) -> float:
    value = float(text)
    if not 0.5 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be above 0.5 and below 1, for example 0.95")
    return value
