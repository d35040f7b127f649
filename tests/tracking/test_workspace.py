"""The JSON of the workspace uses the names of the logged series."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fluxexp.telemetry import RankFigures, Totals, Windows
from fluxexp.tracking import series
from fluxexp.tracking.series import PER_RANK, QUANTILES

FIGURES: dict[str, float | None] = dict.fromkeys(PER_RANK, 1.0)

# The part of wandb-workspaces that `fluxexp.tracking.workspace` uses, without a server.
FAKE_WORKSPACES = """
class Section:
    def __init__(self, **values): pass
class Workspace:
    def __init__(self, **values): self.values = values
    def save(self): return self
    @property
    def url(self): return "https://{entity}/{project}/{name}".format(**self.values)
"""
FAKE_PANELS = "def __getattr__(name): return lambda *args, **values: None"


def command(*arguments: str, path: Path | None = None, entity: str = "team") -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "fluxexp.tracking.workspace", "--entity", entity, "--project", "p", *arguments]
    paths = [*([str(path)] if path else []), *filter(None, [os.environ.get("PYTHONPATH")])]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(program, capture_output=True, text=True, timeout=60, env=environ)


@pytest.fixture(scope="module")
def workspace() -> dict[str, Any]:
    done = command("--json", "--quality", "psnr", "--name", "mine")
    assert (done.returncode, done.stderr) == (0, "")
    values: dict[str, Any] = json.loads(done.stdout)
    return values


@pytest.fixture(scope="module")
def panels(workspace: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Configs of panels by section."""
    sections = workspace["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: [panel["config"] for panel in section["panels"]] for section in sections}


def test_the_workspace_is_for_the_project(workspace: dict[str, Any]) -> None:
    assert (workspace["entity"], workspace["project"], workspace["displayName"]) == ("team", "p", "mine")


@pytest.mark.parametrize("number", [2, 65])
@pytest.mark.parametrize("figure", PER_RANK)
def test_a_panel_for_each_figure_shows_its_series_and_no_others(
    panels: dict[str, list[dict[str, Any]]], figure: str, number: int
) -> None:
    names = series(dict.fromkeys(range(number), FIGURES), wall_s=1.0)
    (shown,) = [
        found
        for panel in panels["Ranks"]
        if (found := {name for name in names if re.search(panel["metricRegex"], name)})
        and all(figure in name.split("/") for name in found)
    ]
    assert len(shown) == (number if number == 2 else len(QUANTILES))
    assert {panel["xAxis"] for panel in panels["Ranks"]} == {"wall_s"} <= names.keys()
    assert all(panel["useMetricRegex"] for panel in panels["Ranks"])


def test_all_figures_of_the_session_have_a_panel(panels: dict[str, list[dict[str, Any]]]) -> None:
    beat = RankFigures(totals=Totals(until_s=2.0), utilization=None, memory_gib=None, finished_s=None)
    names = Windows(0.0).next({0: beat}, 2.0).session_values(resumed=0, total=4).keys()
    sections = [*panels["Progress"], *panels["Balance"]]
    shown = [metric for panel in sections for metric in panel.get("metrics", [])]
    assert sorted(shown) == sorted(names)


def test_images_have_a_panel(panels: dict[str, list[dict[str, Any]]]) -> None:
    (panel,) = panels["Images"]
    assert panel["mediaKeys"] == ["images"]


def test_json_needs_no_entity() -> None:
    done = command("--json", entity="")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["project"] == "p"
    done = command(entity="")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--entity (or WANDB_ENTITY) must say which user or team" in done.stderr


@pytest.mark.parametrize(("section", "table"), [("Samples", "samples"), ("Balance", "ranks"), ("Sweep", "points")])
def test_tables_are_shown(panels: dict[str, list[dict[str, Any]]], section: str, table: str) -> None:
    assert any(f'"{table}"' in json.dumps(panel) for panel in panels[section])


def test_points_of_a_sweep_are_compared(panels: dict[str, list[dict[str, Any]]]) -> None:
    axes = [tuple(panel.get(f"{axis}Axis") for axis in "xyz") for panel in panels["Sweep"] if "xAxis" in panel]
    assert axes == [
        ("config:sampling.value.steps", "config:sampling.value.guidance", "summary:psnr"),
        ("summary:cost.device_s_per_image", "summary:psnr", None),
    ]


def put(path: Path, files: dict[str, str]) -> Path:
    """Write a fake `wandb_workspaces` from these files. Returns the folder to import it from."""
    for name, source in files.items():
        file = path / "wandb_workspaces" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    return path


def test_the_url_of_a_created_workspace_is_printed(tmp_path: Path) -> None:
    modules = {"__init__.py": "", "workspaces.py": FAKE_WORKSPACES, "reports/__init__.py": ""}
    done = command(path=put(tmp_path, {**modules, "reports/v2.py": FAKE_PANELS}))
    assert (done.returncode, done.stdout, done.stderr) == (0, "https://team/p/fluxexp\n", "")


def test_without_the_extra_the_error_names_it(tmp_path: Path) -> None:
    missing = "raise ModuleNotFoundError('no', name='wandb_workspaces')"
    done = command("--json", path=put(tmp_path, {"__init__.py": missing}))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "pip install 'fluxexp[workspaces]'" in done.stderr


def test_an_error_of_w_and_b_is_one_line() -> None:
    done = command()  # without credentials
    assert (done.returncode, done.stdout) == (1, "")
    assert "W&B could not create the workspace" in done.stderr
    assert "No API key configured" in done.stderr


def test_a_broken_installation_is_not_reported_as_missing(tmp_path: Path, fake_wandb: Callable[[str], None]) -> None:
    fake_wandb("raise ModuleNotFoundError('no libc', name='libc')")
    done = command("--json")
    assert done.returncode == 1
    assert "no libc" in done.stderr
