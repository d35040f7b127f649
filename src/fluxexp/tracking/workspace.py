"""Create a W&B workspace for what fluxexp tracks: `python -m fluxexp.tracking.workspace --entity E --project P`.

`--json` prints it instead, without a network. Needs the extra `workspaces`.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from fluxexp.tracking.series import IDLE, IMBALANCE, RANKS_TABLE, SAMPLES_TABLE, WALL, pattern
from fluxexp.tracking.summary_values import COST, QUALITY

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


def _rank_panels(wr: Any) -> list[Any]:
    titles = {
        "images_per_s": "Throughput per rank, images/s",
        "utilisation": "Utilization per rank",
        "busy": "Share of time busy per rank",
        "memory_gib": "Memory per rank, GiB",
        "images": "Images per rank",
    }
    return [wr.LinePlot(title=title, x=WALL, metric_regex=pattern(figure)) for figure, title in titles.items()]


def _balance_panels(wr: Any) -> list[Any]:
    return [
        wr.LinePlot(title="Imbalance, largest over mean busy time", x=WALL, y=[IMBALANCE]),
        wr.LinePlot(title="Idle seconds of all ranks", x=WALL, y=[IDLE]),
        # Only with many ranks; fewer ranks have their own lines.
        wr.WeavePanelSummaryTable(table_name=RANKS_TABLE),
    ]


def _sample_panels(wr: Any) -> list[Any]:
    return [wr.WeavePanelSummaryTable(table_name=SAMPLES_TABLE, layout=wr.Layout(w=24, h=12))]


def _sweep_panels(wr: Any, quality: str) -> list[Any]:
    judged, cost = wr.SummaryMetric(quality), wr.SummaryMetric(COST)
    steps, guidance = wr.Config("sampling.steps"), wr.Config("sampling.guidance")
    return [
        wr.ScatterPlot(title=f"Steps against guidance, by {quality}", x=steps, y=guidance, z=judged),
        wr.ScatterPlot(title=f"{quality} against cost, device seconds per image", x=cost, y=judged),
    ]


def main() -> None:
    """Create the workspace and print its URL. Exit code 1 if W&B rejects it, 2 without the extra."""
    args = _parser().parse_args()
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
    parser.add_argument("--entity", required=True, help="user or team that owns the project")
    parser.add_argument("--project", required=True, help="project of the runs (tracking.project)")
    parser.add_argument("--name", default="fluxexp", help="name of the workspace (default: %(default)s)")
    parser.add_argument("--quality", default=QUALITY, help="summary value that judges results (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the workspace instead of creating it")
    return parser


def _fail(text: str, exit_code: int) -> int:
    print(f"fluxexp: {text}", file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    main()
