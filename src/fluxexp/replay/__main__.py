"""`python -m fluxexp.replay RUN_DIR ...`: create a W&B run for each run directory, from its files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import groupby

from fluxexp.address import Address
from fluxexp.config.build import build
from fluxexp.config.schema import TrackingConfig
from fluxexp.errors import FluxexpError
from fluxexp.replay.player import replay
from fluxexp.replay.source import Source
from fluxexp.storage.run_directory import RunDirectory
from fluxexp.storage.sweep_directory import SweepDirectory
from fluxexp.tracking import TrackingReport

Replayed = RunDirectory | SweepDirectory
PATIENCE_S = 600.0
"""Seconds to wait until W&B accepts one run. This is longer than its child process waits for an upload."""


def main() -> None:
    """Replay run directories. Exit codes: 0 if every replay succeeded, 1 if one failed, 2 if the command is wrong."""
    args = _parser().parse_args()
    try:
        # Find everything that is wrong with the command before the first replay.
        wanted = [item for address in args.run for item in _wanted(address, args)]
        reports = _replay_all(wanted, args.group)
    except FluxexpError as error:
        print(f"fluxexp: {str(error).strip()}", file=sys.stderr)
        sys.exit(2)
    for run, report in reports:
        _say(run.address, report)
    sys.exit(any(report.mode is None for _, report in reports))


def _wanted(address: Address, args: argparse.Namespace) -> list[tuple[Replayed, TrackingConfig]]:
    """The run at `address`, with its tracking config; if it is the address of a sweep, the sweep and its points.

    The sweep as a whole has the tracking config of its first point.
    """
    sweep = SweepDirectory(address)
    values = sweep.reader.values()
    found = [run for point in values["points"] if (run := sweep.run_of(point))] if values else [RunDirectory(address)]
    runs: list[tuple[Replayed, TrackingConfig]] = [(run, _tracking(Source.read(run), args)) for run in found]
    return [(sweep, runs[0][1]), *runs] if values and runs else runs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fluxexp.replay", description=__doc__)
    parser.add_argument(
        "run",
        type=Address.of,
        nargs="+",
        metavar="RUN_DIR",
        help="directory of a run; for the directory of a sweep, the sweep and all its points are replayed",
    )
    parser.add_argument(
        "--mode", choices=("offline", "online"), help="default: online if there are credentials, else offline"
    )
    parser.add_argument("--project", help="W&B project; default: that of the run's config, else WANDB_PROJECT")
    parser.add_argument(
        "--group", help="W&B group; default: that of the run's config, else the name of the run, or of its sweep"
    )
    return parser


def _tracking(source: Source, args: argparse.Namespace) -> TrackingConfig:
    """The run's tracking config, with tracking enabled and the options of the command line."""
    own = source.tracking()
    values = {"mode": args.mode, "project": args.project or own.project, "finish_timeout_s": PATIENCE_S}
    return build(TrackingConfig, {name: getattr(own, name) for name in TrackingConfig.__dataclass_fields__} | values)


def _replay_all(
    wanted: Sequence[tuple[Replayed, TrackingConfig]], group: str | None
) -> list[tuple[Replayed, TrackingReport]]:
    """Replay runs in order. Consecutive runs with the same tracking config share a child process."""
    reports: list[tuple[Replayed, TrackingReport]] = []
    for tracking, members in groupby(wanted, key=lambda item: item[1]):
        runs = [run for run, _ in members]
        reports += zip(runs, replay(runs, tracking, group), strict=True)
    return reports


def _say(run: Address, report: TrackingReport) -> None:
    if report.error:
        print(f"fluxexp: {run}: {report.error}", file=sys.stderr)
    if report.mode is not None:
        where = report.url or _place(run, report.directory)
        print(f"{run}: {report.mode} {where}".rstrip())


def _place(run: Address, directory: str | None) -> str:
    """W&B's directory, which a report gives relative to the run, or as an absolute path."""
    if directory is None:
        return ""
    return directory if directory.startswith("/") else str(run / directory)


if __name__ == "__main__":
    main()
