"""The texts that the passes of a step read: those of a sample, else those of its point."""

from __future__ import annotations

from fluxexp.errors import SampleError
from fluxexp.models.base import Prompt, PromptPair
from fluxexp.records import Point, Sample


def prompt_of(sample: Sample, point: Point) -> Prompt:
    """The prompt of both text encoders, or one for each."""
    own = point.prompt_2 if sample.prompt_2 is None else sample.prompt_2
    return sample.prompt if own is None else PromptPair(sample.prompt, own)


def negative_prompt_of(sample: Sample, point: Point) -> str | None:
    """The prompt of the second pass; None if there is no second pass, or no negative prompt."""
    if not point.makes_second_pass:
        return None
    return point.negative_prompt if sample.negative_prompt is None else sample.negative_prompt


def require_negative_prompt(sample: Sample, point: Point) -> None:
    """Raise a SampleError for a second pass without a negative prompt. diffusers would silently make one pass."""
    if point.makes_second_pass and negative_prompt_of(sample, point) is None:
        raise SampleError(
            f"{sample.key}: true_cfg_scale is {point.true_cfg_scale:g}, but there is no negative prompt: write one "
            "into the row, or set sampling.negative_prompt (empty text is allowed)"
        )
