from pathlib import Path

import pytest
import yaml

from fluxexp.config.build import build
from fluxexp.config.schema import Tracking
from fluxexp.tracking import series


def test_each_rank_has_its_series() -> None:
    figures = {"images_per_s": 1.5, "busy": 0.9, "utilisation": 0.8, "memory_gib": 30.0, "images": 12}
    assert series({0: figures, 3: {"images": 2}}, wall_s=10.0, imbalance=1.25) == {
        "rank/0/images_per_s": 1.5,
        "rank/0/busy": 0.9,
        "rank/0/utilisation": 0.8,
        "rank/0/memory_gib": 30.0,
        "rank/0/images": 12,
        "rank/3/images": 2,
        "load/imbalance": 1.25,
        "wall_s": 10.0,
    }


@pytest.mark.parametrize("unknown", [None, float("nan"), float("inf")])
def test_what_is_unknown_is_left_out(unknown: float | None) -> None:
    assert series({0: {"busy": unknown}}, wall_s=1.0, imbalance=unknown) == {"wall_s": 1.0}


def test_figures_of_other_names_are_left_out() -> None:
    assert series({0: {"power_w": 400.0}}, wall_s=1.0) == {"wall_s": 1.0}


@pytest.mark.parametrize(("name", "mode"), [("wandb", None), ("disabled", "disabled")])
def test_config_files_have_every_key(name: str, mode: str | None) -> None:
    path = Path(__file__).parents[2] / "conf" / "tracking" / f"{name}.yaml"
    assert build(Tracking, yaml.safe_load(path.read_text())).mode == mode
