from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fluxexp.config.build import build
from fluxexp.config.schema import TrackingConfig
from fluxexp.tracking import RANKS_COLUMNS, ranks_table, series
from fluxexp.tracking.series import IDLE, IMBALANCE


def test_each_rank_has_its_series() -> None:
    figures = {"images_per_s": 1.5, "busy": 0.9, "utilisation": 0.8, "memory_gib": 30.0, "images": 12}
    assert series({0: figures, 3: {"images": 2}}, wall_s=10.0, session={IMBALANCE: 1.25}) == {
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
def test_unknown_values_are_left_out(unknown: float | None) -> None:
    assert series({0: {"busy": unknown}}, wall_s=1.0, session={IMBALANCE: unknown}) == {"wall_s": 1.0}


def test_figures_of_other_names_are_left_out() -> None:
    assert series({0: {"power_w": 400.0}}, wall_s=1.0) == {"wall_s": 1.0}


@pytest.mark.parametrize(("name", "mode"), [("wandb", None), ("disabled", "disabled")])
def test_config_files_have_every_key(name: str, mode: str | None) -> None:
    path = Path(__file__).parents[2] / "conf" / "tracking" / f"{name}.yaml"
    assert build(TrackingConfig, yaml.safe_load(path.read_text())).mode == mode


def many(number: int) -> dict[int, dict[str, float | None]]:
    """Figures of ranks: rank r made r images, and `busy` is unknown for half of the ranks."""
    return {rank: {"images": float(rank), "busy": 0.5 if rank % 2 else None} for rank in reversed(range(number))}


def test_up_to_sixty_four_ranks_have_their_own_series() -> None:
    values = series(many(64), wall_s=1.0)
    assert values["rank/63/images"] == 63
    assert not any(name.startswith("ranks/") for name in values)
    assert ranks_table(many(64)) is None


def test_more_ranks_are_logged_as_quantiles() -> None:
    assert series(many(101), wall_s=1.0, session={IMBALANCE: 1.25, IDLE: 30.0}) == {
        **{"ranks/images/min": 0, "ranks/images/p10": 10, "ranks/images/p50": 50, "ranks/images/p90": 90},
        "ranks/images/max": 100,
        **{f"ranks/busy/{quantile}": 0.5 for quantile in ("min", "p10", "p50", "p90", "max")},
        **{"load/imbalance": 1.25, "load/idle_s": 30.0, "wall_s": 1.0},
    }


@given(st.lists(st.floats(-1e6, 1e6), min_size=65, max_size=200))
def test_quantiles_are_numpy_s(values: list[float]) -> None:
    told = series({rank: {"images": value} for rank, value in enumerate(values)}, wall_s=0.0)
    expected = np.quantile(values, [0, 0.1, 0.5, 0.9, 1])
    assert [told[f"ranks/images/{name}"] for name in ("min", "p10", "p50", "p90", "max")] == pytest.approx(expected)


def test_the_table_of_ranks_has_a_row_per_rank_in_order() -> None:
    ranks = many(65) | {3: {"images": float("nan"), "memory_gib": 8.0}}
    rows = ranks_table(ranks)
    assert rows is not None
    assert [row[0] for row in rows] == list(range(65))
    assert dict(zip(RANKS_COLUMNS, rows[5], strict=True))["busy"] == 0.5
    assert rows[3] == [3, *[None] * 7, 8.0, None]
