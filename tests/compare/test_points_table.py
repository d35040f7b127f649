from typing import Any

from fluxexp.compare import point_labels, points_table

SWEEP: dict[str, Any] = {
    "answer": {"sentence": "4 steps are enough", "best": 1, "cheapest": 0},
    "points": [
        {
            "directory": "fill-a",
            "settings": {"sampling.steps": 4},
            "quality": {"adherence": {"mean": 0.8, "low": 0.7, "high": 0.9, "num": 32}},
            "distance": {"lpips_to_reference": {"mean": 0.1, "low": None, "high": None, "num": 1}},
            "cost": {"device_s_per_image": 0.5, "usd_per_image": None},
            "is_pareto": True,
            "num_ok": 32,
            "num_failed": 0,
            "num_tasks": 32,
        },
        {
            "directory": "fill-b",
            "settings": {"sampling.steps": 16, "scheduler.shift": 3.0},
            "quality": {"adherence": {"mean": 0.9, "low": 0.8, "high": 1.0, "num": 32}},
            "distance": {},
            "cost": None,
            "is_pareto": True,
        },
        {"directory": None, "settings": {}, "quality": None, "distance": None, "cost": None, "is_pareto": False},
    ],
}


def test_a_row_has_settings_quality_cost_and_verdicts() -> None:
    columns, rows = points_table(SWEEP)
    four, sixteen, failed = (dict(zip(columns, row, strict=True)) for row in rows)
    assert four == {
        **{"point": 0, "label": "steps=4", "sampling.steps": 4, "scheduler.shift": None, "directory": "fill-a"},
        **{"lpips_to_reference": 0.1, "lpips_to_reference_low": None, "lpips_to_reference_high": None},
        **{"adherence": 0.8, "adherence_low": 0.7, "adherence_high": 0.9},
        **{"cost.device_s_per_image": 0.5, "cost.usd_per_image": None},
        **{"is_pareto": True, "is_best": False, "is_cheapest": True, "num_ok": 32, "num_failed": 0, "num_tasks": 32},
    }
    assert (sixteen["label"], sixteen["is_best"], sixteen["lpips_to_reference"]) == ("steps=16 shift=3", True, None)
    assert (failed["point"], failed["adherence"], failed["is_pareto"]) == (2, None, False)


def test_points_are_labeled_by_their_settings() -> None:
    assert point_labels(SWEEP) == {"fill-a": "steps=4", "fill-b": "steps=16 shift=3"}
    assert point_labels({}) == {}


def test_a_sweep_of_an_older_version_has_a_table() -> None:
    columns, rows = points_table({"points": [{"status": "complete", "directory": "a"}], "answer": None})
    assert dict(zip(columns, rows[0], strict=True))["directory"] == "a"
