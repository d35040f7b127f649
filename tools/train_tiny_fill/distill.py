"""Stage 3 trains students that predict in one evaluation what classifier-free guidance of a teacher needs two for.

Meng et al. 2023, "On Distillation of Guided Diffusion Models". A student gets the guidance through FLUX's guidance
embedding.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from tools.train_tiny_fill.autoencoder import Posteriors
from tools.train_tiny_fill.flow import (
    TEACHER_GUIDANCE,
    Sampler,
    empty_prompts,
    partly_rounded,
    velocity,
)
from tools.train_tiny_fill.progress import Log, mixed_precision, optimize
from tools.train_tiny_fill.settings import Guidance, Settings
from tools.train_tiny_fill.text import Captions, TextEncoders, freeze, join

_DROPOUT = 0.05


def make_student(teacher: Any) -> Any:
    """Freeze the teacher, and return a copy of it to train."""
    freeze(teacher)
    return copy.deepcopy(teacher).requires_grad_(True).train()


def distill(
    settings: Settings,
    text: TextEncoders,
    teachers: dict[str, Any],
    students: dict[str, Any],
    posteriors: Posteriors,
    captions: Captions,
    log: Log,
) -> None:
    """Train the students `fill` and `dev` with the frozen teachers of the same names."""
    stage = settings.distill
    sampler = Sampler(settings, posteriors, stage.batch)
    ranges = {"fill": settings.fill_guidance, "dev": settings.dev_guidance}
    freeze(text)

    def losses() -> dict[str, Tensor]:
        rows, batch = sampler.draw()
        parts = {}
        with mixed_precision(sampler.device):
            with torch.no_grad():
                prompts, pooled = text(join(captions.fill(rows, _DROPOUT), captions.dev(rows, _DROPOUT)))
                empty = empty_prompts(text, captions, len(rows))
            for index, (name, teacher) in enumerate(teachers.items()):
                part = slice(index * len(rows), (index + 1) * len(rows))
                encoded = prompts[part], pooled[part]
                guidance = _draw_guidance(ranges[name], len(rows), sampler.device)
                weight = _weight(ranges[name], guidance)
                target = _guided(teacher, batch, encoded, empty, weight, filling=name == "fill")
                guess = velocity(students[name], batch, partly_rounded(guidance), *encoded, filling=name == "fill")
                parts[name] = _loss(guess, target, weight, batch.weight if name == "fill" else None)
        return parts

    optimize("distill", stage, list(students.values()), losses, log)


@torch.no_grad()
def _guided(
    teacher: Any,
    batch: Any,
    encoded: tuple[Tensor, Tensor],
    empty: tuple[Tensor, Tensor],
    weight: Tensor,
    *,
    filling: bool,
) -> Tensor:
    """Classifier-free guidance: the prediction without a prompt, plus `weight` times the effect of the prompt."""
    constant = torch.full_like(batch.sigma, TEACHER_GUIDANCE)
    without = velocity(teacher, batch, constant, *empty, filling=filling)
    with_prompt = velocity(teacher, batch, constant, *encoded, filling=filling)
    return without + weight[:, None, None] * (with_prompt - without)


def _loss(guess: Tensor, target: Tensor, guidance_weight: Tensor, token_weight: Tensor | None) -> Tensor:
    """Mean squared error, divided by the guidance weight: strong guidance makes targets, and so errors, large."""
    error = (guess - target).square() / guidance_weight.clamp(min=1)[:, None, None]
    return error.mean() if token_weight is None else (token_weight * error).mean()


def _draw_guidance(guidance: Guidance, count: int, device: torch.device) -> Tensor:
    """Random guidance numbers: 85 % uniform up to `guidance.usual`, the others between that and `guidance.largest`."""
    uniform = torch.rand(2, count, device=device)
    beyond = guidance.usual + uniform[0] * (guidance.largest - guidance.usual)
    return torch.where(uniform[1] < 0.85, uniform[0] * guidance.usual, beyond)


def _weight(guidance: Guidance, numbers: Tensor) -> Tensor:
    """Weights of classifier-free guidance for guidance numbers (see `Guidance`)."""
    return 1 + (numbers - 1) * guidance.slope
