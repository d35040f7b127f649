"""`metrics=basic`: scores of an image that need no network weights.

Means are over values, that is, over pixels and channels. "Levels" are pixel values from 0 to 255. A score is None if it
cannot be computed, for example without a ground truth, or if no pixel is unmasked.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fluxexp.arrays import BoolArray, ImageArray
from fluxexp.metrics.case import Case, Metric, MetricScores
from fluxexp.metrics.regions import Region, bounding_box
from fluxexp.metrics.shape_reading import Tone, background_tone, has_background, read_object
from fluxexp.metrics.similarity import PSNR_IDENTICAL, Windowed, ms_ssim, psnr, windowed_ssim_map

BLANK_LEVELS = 2.0
"""A result is blank if the standard deviation of each channel, in levels, is below this value."""
_SSIM_REACH = 5
"""A value of the SSIM map depends on pixels up to this distance: half of its 11 x 11 window."""


class MaskedRegionSimilarity:
    """Similarity to the ground truth in the masked region."""

    names: Sequence[str] = ("psnr_hole", "ssim_hole", "ms_ssim_hole")
    identity = ""

    def score(self, case: Case) -> MetricScores:
        """PSNR in dB, mean of the SSIM map, and MS-SSIM of the bounding box if it is large enough."""
        truth = case.truth
        if truth is None or case.masked_region is None or not case.masked_region.any():
            return dict.fromkeys(self.names)
        tight = _box(case, 0)
        painted_truth = case.shared.once("painted truth", lambda: case.painted(truth))
        return {
            "psnr_hole": psnr(case.painted_pixels, painted_truth),
            "ssim_hole": _mean_similarity(case, truth),
            "ms_ssim_hole": ms_ssim(case.result[tight], truth[tight]),
        }


class UnmaskedChange:
    """Change of the unmasked region relative to the sample's image."""

    names: Sequence[str] = ("psnr_kept", "max_difference_kept")
    identity = ""

    def score(self, case: Case) -> MetricScores:
        """PSNR in dB, and the largest difference of a value in levels."""
        image = case.input
        if image is None or case.masked_region is None or case.masked_region.all():
            return dict.fromkeys(self.names)
        if is_input_kept(case):
            return {"psnr_kept": PSNR_IDENTICAL, "max_difference_kept": 0.0}
        kept = ~case.masked_region
        result, unmasked = case.result[kept], image[kept]
        largest = np.abs(result.astype(np.int16) - unmasked).max()
        return {"psnr_kept": psnr(result, unmasked), "max_difference_kept": float(largest)}


class Seam:
    """Visibility of the border of the masked region."""

    names: Sequence[str] = ("seam",)
    identity = "absolute"

    def score(self, case: Case) -> MetricScores:
        """How far the step across the border is from that of the ground truth, in levels.

        The step is the mean absolute difference between neighbors across the border. A smaller step than the ground
        truth's is as wrong as a larger one: a smeared border must not score better than the ground truth.
        """
        truth, masked_region = case.truth, case.masked_region
        if truth is None or masked_region is None:
            return {"seam": None}
        crossings = case.shared.once("crossings", lambda: _crossings(masked_region))
        right = case.shared.once("seam of truth", lambda: _border_step(truth, crossings))
        step = _border_step(case.result, crossings)
        return {"seam": None if step is None or right is None else abs(step - right)}


class Guards:
    """Checks that detect failed results."""

    names: Sequence[str] = ("hole_change", "blank", "saturated")
    identity = ""

    def score(self, case: Case) -> MetricScores:
        """Mean change of the masked region in levels; blank (1) or not (0); fraction of values at 0 or 255."""
        painted = case.painted_pixels
        if not painted.size:
            return dict.fromkeys(self.names)
        change = None
        if (image := case.input) is not None and case.masked_region is not None:
            before = case.shared.once("painted input", lambda: case.painted(image))
            change = float(np.abs(painted.astype(np.int16) - before).mean())
        return {
            "hole_change": change,
            "blank": float(painted.std(axis=0).max() < BLANK_LEVELS),
            "saturated": float(((painted == 0) | (painted == 255)).mean()),
        }


class Colorfulness:
    """How colorful the painted pixels are: little in pale or gray images, much at strong guidance."""

    names: Sequence[str] = ("colorfulness",)
    identity = ""

    def score(self, case: Case) -> MetricScores:
        """The colorfulness M of Hasler and Suesstrunk (2003, "Measuring colorfulness in natural images")."""
        painted = case.painted_pixels
        if not painted.size:
            return {"colorfulness": None}
        red, green, blue = painted.astype(np.float64).T
        opponents = np.stack([red - green, (red + green) / 2 - blue])
        spread, mean = np.linalg.norm(opponents.std(axis=1)), np.linalg.norm(opponents.mean(axis=1))
        return {"colorfulness": float(spread + 0.3 * mean)}


class Adherence:
    """Whether the painted object has the requested color and shape. Only for samples of `dataset=shapes`."""

    names: Sequence[str] = ("color_right", "shape_right", "adherence")
    identity = ""

    def score(self, case: Case) -> MetricScores:
        """1 or 0 each for the color, the shape, and both together."""
        color, shape = case.traits.get("color"), case.traits.get("shape")
        if color is None or shape is None:
            return dict.fromkeys(self.names)
        # A whole image has several objects: look for the one with the requested color.
        if case.masked_region is None:
            reading = read_object(case.result, None, color)
        else:
            mask = np.where(case.masked_region, np.uint8(255), np.uint8(0))
            reading = read_object(case.result, mask, tone=_known_tone(case))
        is_color, is_shape = reading.color == color, reading.shape == shape
        return {"color_right": float(is_color), "shape_right": float(is_shape), "adherence": float(is_color & is_shape)}


class OutputDistance:
    """Similarity to the result of the reference run, in the painted pixels."""

    names: Sequence[str] = ("psnr_to_reference", "ssim_to_reference")
    identity = ""

    def measure(self, case: Case, reference: ImageArray) -> MetricScores:
        """PSNR in dB and mean of the SSIM map, in the masked region or else in the whole image."""
        if not case.painted_pixels.size:
            return dict.fromkeys(self.names)
        return {
            "psnr_to_reference": psnr(case.painted_pixels, case.painted(reference)),
            "ssim_to_reference": _mean_similarity(case, reference),
        }


BASIC: tuple[type[Metric], ...] = (MaskedRegionSimilarity, UnmaskedChange, Seam, Guards, Colorfulness, Adherence)
"""All basic metrics for single images."""


def is_input_kept(case: Case) -> bool:
    """Whether the unmasked region of the result has exactly the pixels of the sample's image."""
    image, masked_region = case.input, case.masked_region
    if image is None or masked_region is None:
        return False
    return case.own.once("is input kept", lambda: not ((case.result != image).any(axis=2) & ~masked_region).any())


def _known_tone(case: Case) -> Tone | None:
    """The background of the sample's image, if it is also that of the result; else None."""
    image, masked_region = case.input, case.masked_region
    if image is None or masked_region is None or not (has_background(masked_region) and is_input_kept(case)):
        return None
    return case.shared.once("tone", lambda: background_tone(image, masked_region))


def _box(case: Case, margin: int) -> Region:
    """The bounding box of the painted pixels, with a margin."""
    masked_region = case.masked_region
    if masked_region is None:
        return slice(None), slice(None)
    return case.shared.once(("box", margin), lambda: bounding_box(masked_region, margin))


def _mean_similarity(case: Case, other: ImageArray) -> float:
    """Mean of the SSIM map of the result and another image, over the painted pixels."""
    box = _box(case, _SSIM_REACH)
    result = case.own.once("windows", lambda: Windowed.of(case.result[box]))
    # The key is valid as long as the image lives, so the memo keeps the image, too.
    _, windowed = case.shared.once(("windows", id(other)), lambda: (other, Windowed.of(other[box])))
    similarity = windowed_ssim_map(result, windowed)
    inside = similarity.reshape(-1) if case.masked_region is None else similarity[case.masked_region[box]]
    return float(inside.mean())


def _crossings(masked_region: BoolArray) -> tuple[Region, BoolArray, BoolArray]:
    """A box with the border of the masked region, and in it the pairs of neighbors of which exactly one is masked."""
    if not masked_region.any():
        return (slice(0, 1), slice(0, 1)), np.zeros((0, 1), bool), np.zeros((1, 0), bool)
    box = bounding_box(masked_region, 1)
    return box, np.diff(masked_region[box], axis=0), np.diff(masked_region[box], axis=1)


def _border_step(pixels: ImageArray, crossings: tuple[Region, BoolArray, BoolArray]) -> float | None:
    """Mean absolute difference in levels of the pairs of neighbors across the border; None if there are none."""
    box, *crosses = crossings
    values = pixels[box].astype(np.int16)
    steps = [np.abs(np.diff(values, axis=axis)[pairs]) for axis, pairs in enumerate(crosses)]
    all_steps: NDArray[np.int16] = np.concatenate(steps)
    return float(all_steps.mean()) if all_steps.size else None
