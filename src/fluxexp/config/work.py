"""How much work the denoiser does for an image, in a unit that does not depend on the device. Imports no torch."""

from __future__ import annotations

from fluxexp.config.families import FAMILIES
from fluxexp.config.generation_schema import EVALUATIONS_PER_STEP
from fluxexp.records import Point


def denoising_work(family: str, point: Point, width: int, height: int) -> float:
    """Transformer passes times tokens of one image of `width` x `height` pixels. The denoiser's time is roughly
    proportional to it. Steps that a step cache skips count, too.
    """
    declared = FAMILIES[family]
    steps = max(1, round(point.steps * point.strength))
    passes = steps * EVALUATIONS_PER_STEP.get(point.scheduler, 1) * declared.passes(point.true_cfg_scale)
    return passes * declared.tokens(width * height, point.max_sequence_length)
