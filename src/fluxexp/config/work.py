"""How much work the denoiser does for an image, in a unit that does not depend on the device. Imports no torch."""

from __future__ import annotations

from functools import cache

from fluxexp.config.architecture import Architecture
from fluxexp.config.families import FAMILIES
from fluxexp.config.generation_schema import EVALUATIONS_PER_STEP, FluxModelConfig, ModelConfig
from fluxexp.records import Point


def denoising_work(model: ModelConfig, point: Point, width: int, height: int) -> float:
    """Transformer passes times tokens of one image of `width` x `height` pixels. The denoiser's time is roughly
    proportional to it. A ControlNet counts as a part of a pass at the steps where it is computed, once also with a
    second pass. Steps that a step cache skips count, too.
    """
    family = FAMILIES[model.family]
    steps = max(1, round(point.steps * point.strength))
    passes = float(steps * family.passes(point.true_cfg_scale))
    if isinstance(model, FluxModelConfig) and family.has_controlnet:
        passes += _controlnet_share(model) * sum(scale != 0 for scale in point.control.scales(steps))
    evaluations = passes * EVALUATIONS_PER_STEP.get(point.scheduler, 1)
    return evaluations * family.tokens(width * height, point.max_sequence_length)


@cache
def _controlnet_share(model: FluxModelConfig) -> float:
    return Architecture.of(model).controlnet_share
