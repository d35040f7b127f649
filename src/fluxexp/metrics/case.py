"""What a metric is shown: a result beside its sample, all of one size. Knows how results are placed, but no files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from PIL import Image

from fluxexp.arrays import BoolArray, ImageArray
from fluxexp.config import RunConfig
from fluxexp.config.families import FAMILIES
from fluxexp.data import Frame, Placed, place
from fluxexp.records import Sample

MetricScores = Mapping[str, float | None]
"""By metric; None where a metric says nothing about an image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One result to be judged. Pictures are uint8 RGB of shape (height, width, 3), all of one size."""

    result: ImageArray
    given: ImageArray | None
    """The sample's image, as far as there is one."""
    truth: ImageArray | None
    masked_region: BoolArray | None
    """(height, width): where the model painted; None for an image made from text alone."""
    prompt: str
    traits: Mapping[str, str]
    """Facts about the sample that can be checked (`Sample.traits`)."""

    @property
    def made(self) -> ImageArray:
        """Pixels that the model made: (number, 3)."""
        return self.result.reshape(-1, 3) if self.masked_region is None else self.result[self.masked_region]


class Metric(Protocol):
    """Scores single images. One instance serves one rank; `score` is called from one thread."""

    @property
    def names(self) -> Sequence[str]:
        """What it gives, as the catalog has it."""
        ...

    @property
    def identity(self) -> str:
        """Tells scores apart that are not comparable (other weights); empty where there is nothing to tell apart."""
        ...

    def score(self, case: Case) -> MetricScores:
        """A value for each of `names`."""
        ...


class PairMetric(Protocol):
    """Measures how far a result is from the one that its reference made of the same sample and noise."""

    @property
    def names(self) -> Sequence[str]:
        """What it gives, as the catalog has it."""
        ...

    @property
    def identity(self) -> str:
        """As of `Metric`."""
        ...

    def measure(self, case: Case, reference: ImageArray) -> MetricScores:
        """A value for each of `names`; `reference` is of the size of the case's pictures."""
        ...


def make_case(result: Image.Image, sample: Sample, config: RunConfig) -> Case:
    """`result` beside its sample. Where results are not pasted back, the sample is brought to the result's size.

    Args:
        result: RGB, as the run has written it.
        sample: the one it was made of.
        config: of the run.
    """
    pixels = np.asarray(result.convert("RGB"))
    paints_mask = FAMILIES[config.model.family].paints_masked_region
    if not paints_mask or sample.image is None or sample.mask is None:
        return Case(
            result=pixels, given=None, truth=None, masked_region=None, prompt=sample.prompt, traits=sample.traits
        )
    if config.output.paste:
        masked_region, given, truth = np.asarray(sample.mask) > 0, sample.image, sample.truth
        if config.dataset.placement == "crop":
            masked_region = _window_only(masked_region, _placed(sample, config).frame)
    else:
        placed = _placed(sample, config)
        assert placed.image is not None
        masked_region, given, truth = np.asarray(placed.mask) > 0, placed.image, _placed_truth(sample, config)
    return Case(
        result=pixels,
        given=np.asarray(given),
        truth=None if truth is None else np.asarray(truth),
        masked_region=masked_region,
        prompt=sample.prompt,
        traits=sample.traits,
    )


def _window_only(masked_region: BoolArray, frame: Frame) -> BoolArray:
    """What of the hole the model was shown: the rest of it is as it was."""
    left, top, right, bottom = frame.window
    inside = np.zeros_like(masked_region)
    inside[top:bottom, left:right] = masked_region[top:bottom, left:right]
    return inside


def _placed_truth(sample: Sample, config: RunConfig) -> Image.Image | None:
    """The truth, placed as the image was."""
    return None if sample.truth is None else _placed(replace(sample, image=sample.truth), config).image


def _placed(sample: Sample, config: RunConfig) -> Placed:
    sampling, resolution = config.sampling, config.model.resolution
    return place(sample, config.dataset.placement, sampling.height, sampling.width, sampling.max_pixels, resolution)
