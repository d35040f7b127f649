from typing import Any

from fluxexp.tracking import run_title, sweep_title

CONFIG: dict[str, Any] = {
    "model": {"name": "flux_fill"},
    "scheduler": {"name": "dpmsolver_multistep", "shift": None},
    "sampling": {"steps": 28, "guidance": 30.0, "strength": 1.0, "seed": 0},
    "optimization": {"step_cache": {"name": "first_block", "threshold": 0.1}},
}


def test_a_run_is_named_by_its_settings() -> None:
    assert run_title("fill", CONFIG) == (
        "fill: flux_fill dpmsolver_multistep steps=28 guidance=30 seed=0 step_cache=first_block"
    )
    image_to_image = CONFIG | {"sampling": {"strength": 0.6}, "optimization": None}
    assert run_title("day", image_to_image) == "day: flux_fill dpmsolver_multistep strength=0.6"


def test_a_config_without_settings_gives_the_name_alone() -> None:
    assert run_title("fill", {"model": "?"}) == "fill"


def test_a_sweep_is_named_by_what_varies() -> None:
    points = [{"sampling.steps": steps, "optimization.step_cache.name": "x"} for steps in (4, 8, 16)]
    assert sweep_title("steps", points) == "steps: 3 points over steps, step_cache"
    assert sweep_title("one", [{}]) == "one: 1 point"
