"""`python -m fluxexp.replay RUN_DIR ...`: make the W&B run of each run directory again, from what lies on disk."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from fluxexp.config.build import build
from fluxexp.config.schema import TrackingConfig
from fluxexp.errors import FluxexpError, StorageError
from fluxexp.replay.player import replay
from fluxexp.replay.source import Source
from fluxexp.tracking import TrackingReport

PATIENCE_S = 600.0
"""Waited for W&B to take one run: longer than its child process gives an upload."""


def main() -> None:
    """Replay run directories; 0 if each has its W&B run, 1 if not, 2 for a command that cannot be done."""
    args = _parser().parse_args()
    try:
        # Before anything is done: all that is wrong with the command.
        runs = [run for path in args.run for run in _runs(path)]
        wanted = [(path, _tracking(Source.read(path), args)) for path in runs]
        reports = _replay_all(wanted, args.group)
    except FluxexpError as error:
        print(f"fluxexp: {str(error).strip()}", file=sys.stderr)
        sys.exit(2)
    for path, report in reports:
        _say(path, report)
    sys.exit(any(report.mode is None for _, report in reports))


def _runs(path: Path) -> list[Path]:
    """The run itself; of a sweep's directory, the runs of its points."""
    try:
        sweep = json.loads((path / "sweep.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return [path]
    except (OSError, ValueError) as error:
        raise StorageError(f"{path / 'sweep.json'} cannot be read: {error}") from error
    return [path.parent / point["directory"] for point in sweep["points"] if point["status"] != "failed"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fluxexp.replay", description=__doc__)
    parser.add_argument(
        "run", type=Path, nargs="+", metavar="RUN_DIR", help="a run's directory, or a sweep's: then its points"
    )
    parser.add_argument("--mode", choices=("offline", "online"), help="online where there are credentials, by default")
    parser.add_argument("--project", help="W&B's project; that of the run's config by default")
    parser.add_argument("--group", help="W&B's group; that of the run's config, else its name, by default")
    return parser


def _tracking(source: Source, args: argparse.Namespace) -> TrackingConfig:
    """The config's, but that it was off, or elsewhere, when the run was made does not matter now."""
    own = source.tracking()
    values = {"mode": args.mode, "project": args.project or own.project, "finish_timeout_s": PATIENCE_S}
    return build(TrackingConfig, {name: getattr(own, name) for name in TrackingConfig.__dataclass_fields__} | values)


def _replay_all(wanted: Sequence[tuple[Path, TrackingConfig]], group: str | None) -> list[tuple[Path, TrackingReport]]:
    """Neighbours that are tracked alike share a child process: usually that is all of them."""
    reports: list[tuple[Path, TrackingReport]] = []
    for tracking, members in groupby(wanted, key=lambda item: item[1]):
        paths = [path for path, _ in members]
        reports += zip(paths, replay(paths, tracking, group), strict=True)
    return reports


def _say(path: Path, report: TrackingReport) -> None:
    if report.error:
        print(f"fluxexp: {path}: {report.error}", file=sys.stderr)
    if report.mode is not None:
        where = report.url or (f"{path / report.directory}" if report.directory else "")
        print(f"{path}: {report.mode} {where}".rstrip())


if __name__ == "__main__":
    main()
