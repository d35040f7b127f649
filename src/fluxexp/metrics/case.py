"""The interfaces of metrics, and their input: a result with its sample, all images at the same size."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from PIL import Image

from fluxexp.arrays import BoolArray, ImageArray
from fluxexp.config import RunConfig
from fluxexp.config.families import FAMILIES
from fluxexp.data import Frame, place_for
from fluxexp.metrics.memo import Memo
from fluxexp.records import Sample
from fluxexp.transparency import over_white

MetricScores = Mapping[str, float | None]
"""By metric. None if a metric does not apply to an image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One result to score. All images are RGB of shape (height, width, 3) and have the same size."""

    result: ImageArray
    input: ImageArray | None
    """The sample's image. None if the model does not use a mask, or if the sample has no image or no mask."""
    truth: ImageArray | None
    masked_region: BoolArray | None
    """The pixels that the model painted, of shape (height, width). None means that it painted the whole image."""
    prompt: str
    traits: Mapping[str, str]
    """Facts about the sample that a metric can check (`Sample.traits`)."""
    own: Memo = field(default_factory=Memo, repr=False, compare=False)
    """What metrics computed from the result, for other metrics."""
    shared: Memo = field(default_factory=Memo, repr=False, compare=False)
    """What metrics computed from the sample, for other results of the same sample."""

    @property
    def painted_pixels(self) -> ImageArray:
        """Pixels that the model painted, of shape (number, 3)."""
        return self.own.once("painted", lambda: self.painted(self.result))

    def painted(self, image: ImageArray) -> ImageArray:
        """The pixels of an image where the model painted, of shape (number, 3)."""
        return image.reshape(-1, 3) if self.masked_region is None else image[self.masked_region]


@dataclass(frozen=True, slots=True)
class ScoredSample:
    """The part of `Case` that all results of a sample share."""

    input: ImageArray | None
    truth: ImageArray | None
    masked_region: BoolArray | None
    prompt: str
    traits: Mapping[str, str]
    shared: Memo = field(default_factory=Memo, repr=False, compare=False)

    @classmethod
    def of(cls, sample: Sample, config: RunConfig) -> ScoredSample:
        """If results are not pasted, the sample is placed at the working size."""
        paints_mask = FAMILIES[config.model.family].paints_masked_region
        if not paints_mask or sample.image is None or sample.mask is None:
            return cls(None, None, None, sample.prompt, sample.traits)
        if config.output.paste:
            masked_region, image, truth = np.asarray(sample.mask) > 0, sample.image, sample.truth
            if config.dataset.placement == "crop":
                masked_region = _window_only(masked_region, place_for(sample, config).frame)
        else:
            placed = place_for(sample, config)
            assert placed.image is not None
            masked_region, image, truth = np.asarray(placed.mask) > 0, placed.image, _placed_truth(sample, config)
        pixels = None if truth is None else np.asarray(truth)
        return cls(np.asarray(image), pixels, masked_region, sample.prompt, sample.traits)

    @staticmethod
    def key(config: RunConfig) -> Hashable:
        """What of a config, besides the dataset, `of` depends on. Runs of equal keys share their samples."""
        sampling = config.sampling
        size = (sampling.height, sampling.width, sampling.max_pixels)
        return config.model.family, config.model.resolution, config.output.paste, size

    def case(self, result: Image.Image) -> Case:
        """A result to score. `result` is the image that a run wrote."""
        return Case(
            result=np.asarray(over_white(result)),
            input=self.input,
            truth=self.truth,
            masked_region=self.masked_region,
            prompt=self.prompt,
            traits=self.traits,
            shared=self.shared,
        )


class Metric(Protocol):
    """Scores single images. One instance serves one rank. Several threads can call `score` at the same time."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the scores in the catalog."""
        ...

    @property
    def identity(self) -> str:
        """Identifies the network weights. Only scores of equal identity are comparable. Empty without weights."""
        ...

    def score(self, case: Case) -> MetricScores:
        """One value for each of `names`."""
        ...


class PairMetric(Protocol):
    """Measures the distance between a result and the reference run's result for the same sample and noise."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the scores in the catalog."""
        ...

    @property
    def identity(self) -> str:
        """As in `Metric`."""
        ...

    def measure(self, case: Case, reference: ImageArray) -> MetricScores:
        """One value for each of `names`. `reference` is RGB and has the size of the images of `case`."""
        ...


def make_case(result: Image.Image, sample: Sample, config: RunConfig) -> Case:
    """Combine `result` with its sample. If results are not pasted, the sample is placed at the working size.

    Args:
        result: the image that the run wrote.
        sample: the sample of this result.
        config: the config of the run.
    """
    return ScoredSample.of(sample, config).case(result)


def _window_only(masked_region: BoolArray, frame: Frame) -> BoolArray:
    """The part of the masked region inside the window of `frame`. The model did not see the rest."""
    left, top, right, bottom = frame.window
    inside = np.zeros_like(masked_region)
    inside[top:bottom, left:right] = masked_region[top:bottom, left:right]
    return inside


def _placed_truth(sample: Sample, config: RunConfig) -> Image.Image | None:
    """The ground truth, placed like the image."""
    if sample.truth is None:
        return None
    return place_for(replace(sample, image=sample.truth, control_image=None, references=()), config).image
