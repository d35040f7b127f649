from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from fluxexp.config import RunConfig
from fluxexp.config.architecture import Architecture
from fluxexp.experiment.work_layout import choose_work_layout
from fluxexp.parallel.coordinator import LocalCoordinator
from fluxexp.parallel.step_cost import step_s
from fluxexp.parallel.topology import Topology

Compose = Callable[..., RunConfig]
FULL_SIZE = ("model=flux_fill", "model.weights=random")


def topology(world_size: int, device: str = "cuda", on_host: int | None = None) -> Topology:
    return Topology(0, world_size, torch.device(device), LocalCoordinator(0, world_size), on_host)


def replicas_of(
    config: RunConfig,
    num_tasks: int,
    world_size: int,
    *,
    is_alone: bool = True,
    linked: int = 8,
    device: str = "cuda",
    on_host: int | None = None,
) -> tuple[int, int]:
    """(replicas, ranks of each)."""
    ranks = topology(world_size, device, on_host)
    found = choose_work_layout([config], num_tasks, ranks, is_alone=is_alone, num_linked=linked)
    assert found.why
    return found.num_replicas, found.context_size


@pytest.mark.parametrize(
    ("num_tasks", "world_size", "expected"),
    [(1, 8, (1, 8)), (2, 8, (2, 4)), (3, 8, (4, 2)), (5, 8, (5, 1)), (8, 8, (8, 1)), (100, 8, (8, 1)), (1, 1, (1, 1))],
)
def test_with_few_images_several_gpus_make_each_image(
    compose: Compose, num_tasks: int, world_size: int, expected: tuple[int, int]
) -> None:
    """At 1024 x 1024. Five images on eight GPUs are fastest on five GPUs, each alone."""
    config = compose(*FULL_SIZE, "sampling.height=1024", "sampling.width=1024")
    assert replicas_of(config, num_tasks, world_size) == expected


def test_auto_forms_replicas_only_if_that_is_faster_and_possible(compose: Compose) -> None:
    config = compose(*FULL_SIZE)
    assert replicas_of(config, 1, 8) == (1, 8)
    assert replicas_of(config, 1, 8, device="cpu") == (1, 1)
    assert replicas_of(config, 1, 8, linked=1) == (1, 1), "without NVLink collectives cost more than they save"
    assert replicas_of(config, 1, 8, linked=4) == (2, 4)
    assert replicas_of(config, 1, 8, is_alone=False) == (1, 1), "the other ranks work on another model"
    assert replicas_of(compose(*FULL_SIZE, "parallelism.context_size=2"), 1, 8) == (4, 2)
    assert replicas_of(compose(*FULL_SIZE, "optimization.fp8_attention=true"), 1, 8) == (1, 1)
    assert replicas_of(compose(*FULL_SIZE, "optimization.hoist_constants=false"), 1, 8) == (1, 1)
    assert replicas_of(compose("model=fake"), 1, 8) == (1, 1)
    assert replicas_of(compose("model=tiny_fill"), 1, 8) == (1, 1), "the model is too small to gain"
    for mode in ("data", "single"):
        assert replicas_of(compose(*FULL_SIZE, f"parallelism={mode}"), 1, 8)[1] == 1


@pytest.mark.parametrize(
    ("size", "num_tasks", "options", "reason"),
    [
        (3, 1, {}, "it must divide the 8 ranks"),
        (8, 1, {"num_linked": 4}, "the 4 GPUs that NVLink connects"),
        (2, 8, {}, "every rank has images of its own"),
        (2, 1, {"is_alone": False}, "other ranks work on another model"),
        (2, 1, {"device": "cpu"}, "the ranks have no GPUs"),
        (2, 5, {}, "ranks that work alone are estimated to be as fast"),
    ],
)
def test_auto_says_why_it_does_not_use_a_context_size(
    compose: Compose, size: int, num_tasks: int, options: dict[str, Any], reason: str
) -> None:
    config = compose(*FULL_SIZE, "sampling.height=1024", "sampling.width=1024", f"parallelism.context_size={size}")
    ranks = topology(8, options.pop("device", "cuda"))
    found = choose_work_layout([config], num_tasks, ranks, **{"is_alone": True, "num_linked": 8, **options})
    assert found.context_size == found.last_size == 1
    assert f"parallelism.context_size={size} has no effect" in found.why
    assert reason in found.why


def test_auto_does_not_mention_a_context_size_that_it_uses(compose: Compose) -> None:
    for size in ("2", "null"):
        config = compose(*FULL_SIZE, f"parallelism.context_size={size}")
        assert "no effect" not in choose_work_layout([config], 1, topology(8), is_alone=True, num_linked=8).why
    plain = compose(*FULL_SIZE)
    assert "no effect" not in choose_work_layout([plain], 8, topology(8), is_alone=True, num_linked=8).why


@pytest.mark.parametrize(
    ("num_tasks", "world_size", "expected"),
    [(9, 8, (1, 8)), (26, 8, (2, 4)), (4, 3, (1, 3)), (15, 8, (0, 1)), (16, 8, (0, 1)), (9, 1, (0, 1))],
)
def test_the_last_few_images_are_made_together(
    compose: Compose, num_tasks: int, world_size: int, expected: tuple[int, int]
) -> None:
    """Nine images on eight GPUs: eight by themselves, one by all. Seven of fifteen gain nothing."""
    config = compose(*FULL_SIZE, "sampling.height=1024", "sampling.width=1024")
    found = choose_work_layout([config], num_tasks, topology(world_size), is_alone=True, num_linked=8)
    assert (found.num_last, found.last_size) == expected
    assert (found.num_replicas, found.context_size) == (world_size, 1)
    assert ("the last" in found.why) == (found.num_last > 0)
    small = compose(*FULL_SIZE, "sampling.height=512", "sampling.width=512")
    assert choose_work_layout([small], 51, topology(8), is_alone=True, num_linked=8).num_last == 0, (
        "small images are made in batches"
    )
    assert choose_work_layout([config], num_tasks, topology(world_size), is_alone=True, num_linked=1).num_last == 0


def test_auto_keeps_a_replica_on_one_machine(compose: Compose) -> None:
    assert replicas_of(compose(*FULL_SIZE), 1, 8, on_host=4) == (2, 4)
    assert replicas_of(compose(*FULL_SIZE, "parallelism=context"), 1, 8, on_host=4) == (1, 8)


def test_parallelism_context_sets_the_layout(compose: Compose) -> None:
    config = compose("parallelism=context")
    assert replicas_of(config, 100, 4, device="cpu") == (1, 4)
    assert replicas_of(config, 100, 1) == (1, 1)
    sized = replace(config, parallelism=replace(config.parallelism, context_size=2))
    assert replicas_of(sized, 100, 4) == (2, 2)


def test_the_formula_is_conservative_compared_with_measurements() -> None:
    """One H200: 132 ms a step at 1024 x 1024, compiled; four by the best published program: 2.6 times one."""
    flux = Architecture()
    assert step_s(flux, 4608, 1) == pytest.approx(0.132, rel=0.03)
    assert 1.5 < step_s(flux, 4608, 1) / step_s(flux, 4608, 2) < 1.9
    assert 2.5 < step_s(flux, 4608, 1) / step_s(flux, 4608, 4) < 3.5
