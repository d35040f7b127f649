"""`python -m fluxexp.gate CANDIDATE REFERENCE --metric NAME --tolerance X`: is the fast version still good?"""

from __future__ import annotations

import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from fluxexp.compare.run_view import RunView, quality_metric
from fluxexp.errors import ComparisonError, ConfigError, FluxexpError
from fluxexp.gate.gate_arguments import GateCommand, GateExit, parse_command
from fluxexp.gate.gate_check import judge_pairs
from fluxexp.gate.gate_files import error_json, error_junit, junit, to_json
from fluxexp.gate.gate_metrics import GateMetric, gate_metric
from fluxexp.gate.gate_result import GateResult
from fluxexp.gate.gate_text import lines_of
from fluxexp.gate.run_pairs import RunPairs, read_pairs
from fluxexp.terminal import say

_EXITS = {"pass": GateExit.PASS, "fail": GateExit.FAIL, "undecided": GateExit.UNDECIDED}
_STDOUT = "-"


def main() -> None:
    """Check, print the result, and exit with one of `GateExit`."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    command, start_s = parse_command(), time.perf_counter()
    lines: list[str] = []
    try:
        result = _check(command)
        seconds = time.perf_counter() - start_s
        content, xml, lines = to_json(result), junit(result, seconds), lines_of(result)
        code = _EXITS[result.verdict]
    except FluxexpError as error:
        code, content, xml = GateExit.DATA, *_error(command, str(error).strip(), start_s)
    except Exception as error:  # Python's exit code would be 1, which says that the candidate is worse
        traceback.print_exc()
        code, content, xml = GateExit.SOFTWARE, *_error(command, f"{type(error).__name__}: {error}", start_s)
    for line in lines:
        say(line, urgent=command.json == _STDOUT)
    sys.exit(code if _write(command, content, xml) else GateExit.DATA)


def _check(command: GateCommand) -> GateResult:
    runs = read_pairs(command.candidate, command.reference)
    metrics = command.metrics or [_default_metric(runs, command.tolerance)]
    return judge_pairs(command.candidate, command.reference, runs, metrics, command.level, command.lpips_weights)


def _default_metric(runs: RunPairs, tolerance: float | None) -> GateMetric:
    views = runs.candidate, runs.reference
    scored = [_metrics_with_values(view) for view in views]
    name = quality_metric([view.config for view in views], scored[0] & scored[1])
    if name is None:
        unscored = [view.plan.directory.address for view, metrics in zip(views, scored, strict=True) if not metrics]
        commands = " && ".join(f"python -m fluxexp.score {address} metrics=basic" for address in unscored)
        raise ComparisonError(
            "the runs have no quality metric in common. Choose one with --metric: for example, ssim_to_reference "
            "compares the images and needs no scores" + (f". Or run: {commands}" if commands else "")
        )
    try:
        return gate_metric(name, tolerance)
    except ConfigError as error:
        raise ComparisonError(f"{str(error).strip()}. Choose another metric with --metric") from error


def _metrics_with_values(view: RunView) -> set[str]:
    """A score can be null: for example, no other dataset than `shapes` has an adherence."""
    return {name for scores in view.scores.values() for name, value in scores.items() if value is not None}


def _error(command: GateCommand, text: str, start_s: float) -> tuple[dict[str, Any], bytes]:
    """Print an error. Returns the content of the files that say it."""
    say(f"fluxexp: {text}", urgent=True)
    content = error_json(command.candidate, command.reference, text)
    return content, error_junit(text, time.perf_counter() - start_s)


def _write(command: GateCommand, content: dict[str, Any], xml: bytes) -> bool:
    """Write the files that the user asks for. Returns whether that was possible; if not, prints the reason."""
    text = json.dumps(content, indent=2)
    if command.json == _STDOUT:
        say(text)
    try:
        if command.json not in (None, _STDOUT):
            Path(command.json).write_text(text + "\n", encoding="utf-8")
        if command.junit is not None:
            command.junit.write_bytes(xml)
    except OSError as error:
        say(f"fluxexp: the result cannot be written: {error}", urgent=True)
        return False
    return True


if __name__ == "__main__":
    main()
