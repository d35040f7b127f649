from __future__ import annotations

from dataclasses import replace
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image

from fluxexp.config.schema import SchedulerConfig
from fluxexp.models.base import ModelInput
from fluxexp.models.schedulers import first_sigma, make_scheduler, set_schedule
from tests.models.conftest import Load, fill_inputs, point, run

NAMES = get_args(get_type_hints(SchedulerConfig)["name"])
FLUX = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_every_scheduler_runs_on_the_tiny_model(load: Load, name: str, strength: float) -> None:
    model = load("tiny_fill")
    latents = run(model, fill_inputs(), [point(4, strength=strength, scheduler=name)] * 3)
    assert latents.dtype == torch.float32
    assert torch.isfinite(latents).all()
    again = run(model, fill_inputs(), [point(4, strength=strength, scheduler=name)] * 3)
    assert torch.equal(latents, again), "state or a global random number leaked from one batch into the next"


@pytest.mark.parametrize("name", NAMES)
def test_latents_keep_the_models_dtype(load: Load, name: str) -> None:
    assert run(load("tiny_fill", "bfloat16"), fill_inputs(), [point(scheduler=name)] * 3).dtype == torch.bfloat16


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"flow_match_lcm"}))
def test_solvers_of_the_same_ode_agree_with_many_steps(name: str) -> None:
    """On dx/dsigma = x (exact solution x(0) = x(1) / e) every deterministic solver converges."""
    scheduler = make_scheduler(name, None, FLUX)
    timesteps = set_schedule(scheduler, 400, 1.0, 256, CPU)
    x = torch.full((1, 4, 4), 2.0)
    for t in timesteps:
        x = scheduler.step(x.clone(), t, x, return_dict=False)[0]
    assert np.allclose(x.numpy(), 2.0 / np.e, rtol=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_shift_follows_the_resolution_unless_fixed(name: str) -> None:
    dynamic = make_scheduler(name, None, FLUX)
    few = float(set_schedule(dynamic, 8, 1.0, 256, CPU)[4])
    many = float(set_schedule(dynamic, 8, 1.0, 4096, CPU)[4])
    assert many > few, "more tokens, more time at high noise"
    fixed = make_scheduler(name, 2.0, FLUX)
    same = {float(set_schedule(fixed, 8, 1.0, tokens, CPU)[4]) for tokens in (256, 4096)}
    assert len(same) == 1


def test_heun_evaluates_the_sigmas_of_euler_twice() -> None:
    euler, heun = make_scheduler("flow_match_euler", None, FLUX), make_scheduler("flow_match_heun", None, FLUX)
    once, twice = set_schedule(euler, 5, 1.0, 1024, CPU), set_schedule(heun, 5, 1.0, 1024, CPU)
    assert len(twice) == 2 * 5 - 1
    assert sorted(set(twice.tolist()), reverse=True) == pytest.approx(once.tolist())


def test_heun_is_second_order() -> None:
    def error(name: str, steps: int) -> float:
        scheduler = make_scheduler(name, None, FLUX)
        x = torch.ones(1, 2, 2, dtype=torch.float32)
        for t in set_schedule(scheduler, steps, 1.0, 256, CPU):
            x = scheduler.step(x.clone(), t, x, return_dict=False)[0]
        return abs(float(x[0, 0, 0]) - 1 / np.e)

    assert error("flow_match_heun", 16) < error("flow_match_euler", 16) / 4


@pytest.mark.parametrize("name", NAMES)
def test_a_lower_strength_skips_the_first_steps(name: str) -> None:
    scheduler = make_scheduler(name, None, FLUX)
    whole = set_schedule(scheduler, 10, 1.0, 256, CPU)
    assert first_sigma(scheduler) == pytest.approx(1.0, abs=1e-3)
    half = set_schedule(scheduler, 10, 0.5, 256, CPU)
    assert first_sigma(scheduler) < 0.9
    assert torch.equal(half, whole[-len(half) :])


@pytest.mark.parametrize("name", NAMES)
def test_at_full_strength_the_image_under_the_mask_has_no_influence(load: Load, name: str) -> None:
    shown = fill_inputs()
    hidden = [replace(item, image=_repainted(item)) for item in shown]
    model = load("tiny_fill")
    points = [point(2, scheduler=name)] * 3
    assert torch.equal(run(model, shown, points), run(model, hidden, points))
    weaker = [point(2, scheduler=name, strength=0.5)] * 3
    assert not torch.equal(run(model, shown, weaker), run(model, hidden, weaker))


def _repainted(item: ModelInput) -> Image.Image:
    """The image with other pixels in the masked region."""
    assert item.image is not None
    image = item.image.copy()
    image.paste((0, 255, 0), mask=item.mask)
    return image


def test_schnell_keeps_its_unshifted_schedule() -> None:
    schnell = FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False).config
    timesteps = set_schedule(make_scheduler("flow_match_euler", None, schnell), 4, 1.0, 4096, CPU)
    assert torch.allclose(timesteps, torch.tensor([1000.0, 750.0, 500.0, 250.0]))
