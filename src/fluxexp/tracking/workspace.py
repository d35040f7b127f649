"""Create a W&B workspace for what fluxexp tracks: `python -m fluxexp.tracking.workspace --entity E --project P`.

`--json` prints it instead, without a network and without an entity. Needs the extra `workspaces`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from fluxexp.tracking.series import (
    DONE,
    FAILED,
    IDLE,
    IMAGES,
    IMBALANCE,
    POINTS_TABLE,
    RANKS_TABLE,
    RATE,
    SAMPLES_TABLE,
    SLOWEST,
    TOTAL,
    WALL,
    pattern,
)
from fluxexp.tracking.summary_values import COST, QUALITY
from fluxexp.tracking.wandb_environment import DEFAULT_PROJECT

MISSING = "a workspace needs wandb-workspaces, which is not installed: pip install 'fluxexp[workspaces]'"


def workspace(entity: str, project: str, name: str = "fluxexp", quality: str = QUALITY) -> Any:
    """Make the workspace as an object of wandb-workspaces. It is not saved.

    Args:
        entity: user or team that owns the project.
        project: project of the runs.
        name: name of the workspace in W&B.
        quality: name of the summary value that judges results.

    Raises:
        ImportError: the extra `workspaces` is not installed.
    """
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    sections = {
        "Progress": _progress_panels(wr),
        "Images": _image_panels(wr),
        "Ranks": _rank_panels(wr),
        "Balance": _balance_panels(wr),
        "Samples": _sample_panels(wr),
        "Sweep": _sweep_panels(wr, quality),
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[ws.Section(name=title, panels=panels, is_open=True) for title, panels in sections.items()],
    )


def as_json(of: Any) -> dict[str, Any]:
    """Return what saving a workspace would send to W&B. Nothing is sent."""
    # A private method, which saving uses; there is no public one.
    values: dict[str, Any] = json.loads(of._to_model().model_dump_json(by_alias=True, exclude_none=True))
    return values


def _progress_panels(wr: Any) -> list[Any]:
    return [
        wr.LinePlot(title="Images done, of all", x=WALL, y=[DONE, TOTAL, FAILED]),
        wr.LinePlot(title="Images per second of all ranks", x=WALL, y=[RATE]),
    ]


def _image_panels(wr: Any) -> list[Any]:
    wide = wr.Layout(w=24, h=14)
    return [wr.MediaBrowser(title="Pictures, mask, result, truth", media_keys=[IMAGES], num_columns=2, layout=wide)]


def _rank_panels(wr: Any) -> list[Any]:
    titles = {
        "busy": "Share of time busy per rank",
        "queue": "Share of time waiting for data, the writer or tasks",
        "idle": "Share of time without work",
        "speed": "Speed of each device, relative to the others",
        "images_per_s": "Throughput per rank, images/s",
        "work_per_s": "Throughput per rank, passes x tokens/s",
        "utilisation": "Utilization per rank",
        "memory_gib": "Memory per rank, GiB",
        "images": "Images per rank",
    }
    return [wr.LinePlot(title=title, x=WALL, metric_regex=pattern(figure)) for figure, title in titles.items()]


def _balance_panels(wr: Any) -> list[Any]:
    return [
        wr.LinePlot(title="Imbalance, largest over mean busy share", x=WALL, y=[IMBALANCE]),
        wr.LinePlot(title="Idle seconds of all ranks", x=WALL, y=[IDLE]),
        wr.LinePlot(title="Speed of the slowest device, relative to the others", x=WALL, y=[SLOWEST]),
        # Only with many ranks; fewer ranks have their own lines.
        wr.WeavePanelSummaryTable(table_name=RANKS_TABLE),
    ]


def _sample_panels(wr: Any) -> list[Any]:
    return [wr.WeavePanelSummaryTable(table_name=SAMPLES_TABLE, layout=wr.Layout(w=24, h=12))]


def _sweep_panels(wr: Any, quality: str) -> list[Any]:
    judged, cost = wr.SummaryMetric(quality), wr.SummaryMetric(COST)
    steps, guidance = wr.Config("sampling.steps"), wr.Config("sampling.guidance")
    return [
        # Of the runs with job type `sweep`, whose summary has the answer.
        wr.WeavePanelSummaryTable(table_name=POINTS_TABLE, layout=wr.Layout(w=24, h=10)),
        wr.ScatterPlot(title=f"Steps against guidance, by {quality}", x=steps, y=guidance, z=judged),
        wr.ScatterPlot(title=f"{quality} against cost, device seconds per image", x=cost, y=judged),
    ]


def main() -> None:
    """Create the workspace and print its URL. Exit code 1 if W&B rejects it, 2 without the extra or the entity."""
    parser = _parser()
    args = parser.parse_args()
    if not args.entity and not args.json:
        parser.error("--entity (or WANDB_ENTITY) must say which user or team owns the project; only --json needs none")
    try:
        made = workspace(args.entity, args.project, args.name, args.quality)
    except ModuleNotFoundError as error:
        if error.name != "wandb_workspaces":
            raise
        sys.exit(_fail(MISSING, 2))
    if args.json:
        print(json.dumps(as_json(made), indent=2))
        return
    try:
        print(made.save().url)
    except Exception as error:  # any error of wandb and its HTTP client
        first_line = str(error).strip().partition("\n")[0]
        sys.exit(_fail(f"W&B could not create the workspace: {type(error).__name__}: {first_line}", 1))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fluxexp.tracking.workspace", description=__doc__)
    parser.add_argument(
        "--entity",
        default=os.environ.get("WANDB_ENTITY", ""),
        help="user or team that owns the project; default: WANDB_ENTITY; not needed with --json",
    )
    parser.add_argument(
        "--project",
        default=os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT,
        help="project of the runs (tracking.project; default: %(default)s)",
    )
    parser.add_argument("--name", default="fluxexp", help="name of the workspace (default: %(default)s)")
    parser.add_argument("--quality", default=QUALITY, help="summary value that judges results (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the workspace instead of creating it")
    return parser


def _fail(text: str, exit_code: int) -> int:
    print(f"fluxexp: {text}", file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    main()
