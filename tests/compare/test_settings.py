"""What points differ in, and what each is measured from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fluxexp.compare.settings import label, references, varied_settings

Compose = Callable[..., Any]
KEY = "optimization.step_cache.threshold"


def test_only_what_varies_is_a_setting(compose: Compose) -> None:
    points = [compose(f"sampling.steps={steps}", f"sampling.batch_size={steps}") for steps in (1, 4)]
    assert varied_settings(points) == [{"sampling.steps": 1}, {"sampling.steps": 4}]
    assert label({"sampling.steps": 4, "sampling.guidance": 30.0}) == "steps=4 guidance=30"
    assert label({"scheduler.name": "unipc", "model.name": "x"}) == "scheduler.name=unipc model.name=x"


def test_models_of_other_names_need_no_other_words(compose: Compose) -> None:
    points = [compose("model=tiny_fill"), compose("model=fake")]
    assert varied_settings(points) == [{"model.name": "tiny_fill"}, {"model.name": "fake"}]


def test_points_are_measured_from_the_one_with_most_steps_that_is_alike_but_for_effort(compose: Compose) -> None:
    points = [
        compose(f"sampling.steps={steps}", f"sampling.guidance={guidance}")
        for guidance in (1, 4)
        for steps in (2, 8, 4)
    ]
    assert references(points) == [1, None, 1, 4, None, 4]


def test_an_optimized_point_is_measured_from_the_plain_one(compose: Compose) -> None:
    points = [compose("sampling.steps=8", "optimization.vae_tiling=true"), compose("sampling.steps=4"), compose()]
    assert references([points[0], points[1]]) == [1, None]
    assert references([points[0]]) == [None]


def test_a_step_cache_goes_by_its_name_and_what_varies_in_it(compose: Compose) -> None:
    plain = compose("optimization.hoist_constants=true")
    points = [plain, *(compose("optimization/step_cache=first_block", f"{KEY}={value}") for value in (0.1, 0.2))]
    assert [label(settings) for settings in varied_settings(points)] == [
        "step_cache=None",
        "step_cache=first_block threshold=0.1",
        "step_cache=first_block threshold=0.2",
    ]
    assert [label(settings) for settings in varied_settings(points[:2])] == [
        "step_cache=None",
        "step_cache=first_block",
    ]
    assert references(points) == [None, 0, 0]
