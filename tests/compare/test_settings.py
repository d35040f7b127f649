"""The settings in which points differ, and the reference of each point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fluxexp.compare.settings import label, references, varied_settings

Compose = Callable[..., Any]
KEY = "optimization.step_cache.threshold"


def test_only_values_that_differ_are_settings(compose: Compose) -> None:
    points = [compose(f"sampling.steps={steps}", f"sampling.batch_size={steps}") for steps in (1, 4)]
    assert varied_settings(points) == [{"sampling.steps": 1}, {"sampling.steps": 4}]
    assert label({"sampling.steps": 4, "sampling.guidance": 30.0}) == "steps=4 guidance=30"
    assert label({"scheduler.name": "unipc", "model.name": "x"}) == "scheduler.name=unipc model.name=x"


def test_different_models_are_described_only_by_their_names(compose: Compose) -> None:
    points = [compose("model=tiny_fill"), compose("model=fake")]
    assert varied_settings(points) == [{"model.name": "tiny_fill"}, {"model.name": "fake"}]


def test_the_reference_has_the_most_steps_and_differs_only_in_effort(compose: Compose) -> None:
    points = [
        compose(f"sampling.steps={steps}", f"sampling.guidance={guidance}")
        for guidance in (1, 4)
        for steps in (2, 8, 4)
    ]
    assert references(points) == [1, None, 1, 4, None, 4]


def test_the_reference_of_an_optimized_point_is_not_optimized(compose: Compose) -> None:
    points = [compose("sampling.steps=8", "optimization.vae_tiling=true"), compose("sampling.steps=4"), compose()]
    assert references([points[0], points[1]]) == [1, None]
    assert references([points[0]]) == [None]


def test_a_step_cache_is_described_by_its_name_and_its_varied_settings(compose: Compose) -> None:
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


def test_loras_and_their_scales_are_settings(compose: Compose) -> None:
    points = [compose("lora=tiny_pastel", f"lora.scale={scale}") for scale in (0.5, 1.0)]
    points.append(compose("lora=tiny_outlined"))
    assert [label(settings) for settings in varied_settings(points)] == [
        "path=embedded:tiny_pastel scale=0.5",
        "path=embedded:tiny_pastel scale=1",
        "path=embedded:tiny_outlined scale=1",
    ]
    assert references(points) == [None, None, None]
    assert references([points[1], compose("lora=tiny_pastel", "lora.mixing=true", "sampling.steps=4")]) == [None, 0]


@pytest.mark.parametrize("key", ["ip_adapter.scale", "redux.scale"])
def test_scales_of_pictures_are_settings(compose: Compose, key: str) -> None:
    points = [compose(f"{key}={scale}") for scale in (0.5, 1.0)]
    assert varied_settings(points) == [{key: 0.5}, {key: 1.0}]
