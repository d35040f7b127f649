"""`metrics=basic`: scores of an image against its sample that need no network's weights.

Means are over values, that is pixels times channels. Where a metric has nothing to go by (no truth, a hole that covers
everything, an image too small), it says None.
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
"""Standard deviation, in levels of 255, below which what was made counts as blank in every channel."""
_SSIM_REACH = 5
"""Pixels from which a value of the SSIM map takes something in: half of its 11 x 11 window."""


class MaskedRegionSimilarity:
    """Inside of the mask, against the truth."""

    names: Sequence[str] = ("psnr_hole", "ssim_hole", "ms_ssim_hole")
    identity = ""

    def score(self, case: Case) -> MetricScores:
        """PSNR, mean of the SSIM map, and MS-SSIM of the hole's bounding box where it is large enough."""
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
    """Outside of the mask, against the image that was given: is the rest as it was?"""

    names: Sequence[str] = ("psnr_kept", "max_difference_kept")
    identity = ""

    def score(self, case: Case) -> MetricScores:
        """PSNR and the largest difference of any value."""
        if case.given is None or case.masked_region is None or case.masked_region.all():
            return dict.fromkeys(self.names)
        result, given = case.result[~case.masked_region], case.given[~case.masked_region]
        largest = np.abs(result.astype(np.int16) - given).max()
        return {"psnr_kept": psnr(result, given), "max_difference_kept": float(largest)}


class Seam:
    """The step across the mask's border."""

    names: Sequence[str] = ("seam",)
    identity = ""

    def score(self, case: Case) -> MetricScores:
        """Mean absolute difference of neighbours on either side of the border, less that of the truth."""
        if case.truth is None or case.masked_region is None:
            return {"seam": None}
        steps = _border_step(case.result, case.masked_region), _border_step(case.truth, case.masked_region)
        return {"seam": None if steps[0] is None or steps[1] is None else steps[0] - steps[1]}


class Guards:
    """Did the model make anything at all?"""

    names: Sequence[str] = ("hole_change", "blank", "saturated")
    identity = ""

    def score(self, case: Case) -> MetricScores:
        """How much the hole differs from what was given; whether it is blank; how much of it is at 0 or 255."""
        made = case.made
        if not made.size:
            return dict.fromkeys(self.names)
        change = None
        if case.given is not None and case.masked_region is not None:
            change = float(np.abs(made.astype(np.int16) - case.given[case.masked_region]).mean())
        return {
            "hole_change": change,
            "blank": float(made.std(axis=0).max() < BLANK_LEVELS),
            "saturated": float(((made == 0) | (made == 255)).mean()),
        }


class Adherence:
    """For samples of `dataset=shapes`: is the object in the hole the one that was asked for?"""

    names: Sequence[str] = ("color_right", "shape_right", "adherence")
    identity = ""

    def score(self, case: Case) -> MetricScores:
        """1 or 0 for colour, shape, and both."""
        color, shape = case.traits.get("color"), case.traits.get("shape")
        if color is None or shape is None:
            return dict.fromkeys(self.names)
        # Of a whole picture with several objects, the one in the colour asked for is looked at.
        mask = None if case.masked_region is None else np.where(case.masked_region, np.uint8(255), np.uint8(0))
        reading = read_object(case.result, mask, None if case.masked_region is not None else color)
        is_color, is_shape = reading.color == color, reading.shape == shape
        return {"color_right": float(is_color), "shape_right": float(is_shape), "adherence": float(is_color & is_shape)}


class OutputDistance:
    """How far a result is from the reference's, where the model painted."""

    names: Sequence[str] = ("psnr_to_reference", "ssim_to_reference")
    identity = ""

    def measure(self, case: Case, reference: ImageArray) -> MetricScores:
        """PSNR and mean of the SSIM map, inside of the mask where there is one."""
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
"""All of them."""


def _bounding_box(masked_region: BoolArray, margin: int) -> tuple[slice, slice]:
    """The rows and columns that hold the hole, and `margin` pixels around them as far as the picture reaches."""
    rows, columns = (np.flatnonzero(masked_region.any(axis=axis)) for axis in (1, 0))
    return (
        slice(max(0, rows[0] - margin), rows[-1] + 1 + margin),
        slice(max(0, columns[0] - margin), columns[-1] + 1 + margin),
    )


def _border_step(pixels: ImageArray, masked_region: BoolArray) -> float | None:
    """Mean absolute difference, in levels, of all pairs of neighbours of which one is in the hole; None without any."""
    steps: list[NDArray[np.int16]] = []
    values = pixels.astype(np.int16)
    for axis in (0, 1):
        crosses = np.diff(masked_region, axis=axis)
        steps.append(np.abs(np.diff(values, axis=axis))[crosses])
    all_steps = np.concatenate(steps)
    return float(all_steps.mean()) if all_steps.size else None
