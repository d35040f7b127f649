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
from fluxexp.metrics.shape_reading import read_object
from fluxexp.metrics.similarity import ms_ssim, psnr, ssim_map

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
        if case.truth is None or case.masked_region is None or not case.masked_region.any():
            return dict.fromkeys(self.names)
        box = _bounding_box(case.masked_region, _SSIM_REACH)
        result, truth, masked_region = case.result[box], case.truth[box], case.masked_region[box]
        tight = _bounding_box(case.masked_region, 0)
        return {
            "psnr_hole": psnr(result[masked_region], truth[masked_region]),
            "ssim_hole": float(ssim_map(result, truth)[masked_region].mean()),
            "ms_ssim_hole": ms_ssim(case.result[tight], case.truth[tight]),
        }


class UnmaskedChange:
    """Change of the unmasked region relative to the sample's image."""

    names: Sequence[str] = ("psnr_kept", "max_difference_kept")
    identity = ""

    def score(self, case: Case) -> MetricScores:
        """PSNR in dB, and the largest difference of a value in levels."""
        if case.input is None or case.masked_region is None or case.masked_region.all():
            return dict.fromkeys(self.names)
        result, image = case.result[~case.masked_region], case.input[~case.masked_region]
        largest = np.abs(result.astype(np.int16) - image).max()
        return {"psnr_kept": psnr(result, image), "max_difference_kept": float(largest)}


class Seam:
    """Visibility of the border of the masked region."""

    names: Sequence[str] = ("seam",)
    identity = "absolute"

    def score(self, case: Case) -> MetricScores:
        """How far the step across the border is from that of the ground truth, in levels.

        The step is the mean absolute difference between neighbors across the border. A smaller step than the ground
        truth's is as wrong as a larger one: a smeared border must not score better than the ground truth.
        """
        if case.truth is None or case.masked_region is None:
            return {"seam": None}
        steps = _border_step(case.result, case.masked_region), _border_step(case.truth, case.masked_region)
        return {"seam": None if steps[0] is None or steps[1] is None else abs(steps[0] - steps[1])}


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
        if case.input is not None and case.masked_region is not None:
            change = float(np.abs(painted.astype(np.int16) - case.input[case.masked_region]).mean())
        return {
            "hole_change": change,
            "blank": float(painted.std(axis=0).max() < BLANK_LEVELS),
            "saturated": float(((painted == 0) | (painted == 255)).mean()),
        }


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
        mask = None if case.masked_region is None else np.where(case.masked_region, np.uint8(255), np.uint8(0))
        reading = read_object(case.result, mask, None if case.masked_region is not None else color)
        is_color, is_shape = reading.color == color, reading.shape == shape
        return {"color_right": float(is_color), "shape_right": float(is_shape), "adherence": float(is_color & is_shape)}


class OutputDistance:
    """Similarity to the result of the reference run, in the painted pixels."""

    names: Sequence[str] = ("psnr_to_reference", "ssim_to_reference")
    identity = ""

    def measure(self, case: Case, reference: ImageArray) -> MetricScores:
        """PSNR in dB and mean of the SSIM map, in the masked region or else in the whole image."""
        masked_region = np.ones(case.result.shape[:2], bool) if case.masked_region is None else case.masked_region
        if not masked_region.any():
            return dict.fromkeys(self.names)
        box = _bounding_box(masked_region, _SSIM_REACH)
        similarity = ssim_map(case.result[box], reference[box])[masked_region[box]]
        return {
            "psnr_to_reference": psnr(case.result[masked_region], reference[masked_region]),
            "ssim_to_reference": float(similarity.mean()),
        }


BASIC: tuple[type[Metric], ...] = (MaskedRegionSimilarity, UnmaskedChange, Seam, Guards, Adherence)
"""All basic metrics for single images."""


def _bounding_box(masked_region: BoolArray, margin: int) -> tuple[slice, slice]:
    """Rows and columns of the bounding box of the masked region, with `margin` more pixels on each side if possible."""
    rows, columns = (np.flatnonzero(masked_region.any(axis=axis)) for axis in (1, 0))
    return (
        slice(max(0, rows[0] - margin), rows[-1] + 1 + margin),
        slice(max(0, columns[0] - margin), columns[-1] + 1 + margin),
    )


def _border_step(pixels: ImageArray, masked_region: BoolArray) -> float | None:
    """Mean absolute difference in levels of all pairs of neighbors of which exactly one is masked; None without any."""
    steps: list[NDArray[np.int16]] = []
    values = pixels.astype(np.int16)
    for axis in (0, 1):
        crosses = np.diff(masked_region, axis=axis)
        steps.append(np.abs(np.diff(values, axis=axis))[crosses])
    all_steps = np.concatenate(steps)
    return float(all_steps.mean()) if all_steps.size else None
