"""The catalog of all metrics: title, unit, direction, description and tolerance. Imports no large library."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """How to read a metric."""

    name: str
    title: str
    unit: str
    """Empty if the metric has no unit."""
    higher_is_better: bool | None
    """None if the value does not measure quality."""
    description: str
    tolerance: float
    """Default of `metrics.tolerance`: a mean can be worse than the best by this value and still be good enough."""
    identical: float | None = None
    """The value of two identical images, for a distance from the reference's result; None for other metrics."""
    is_flag: bool = False
    """Whether only the values 0 and 1 are possible."""


_BASIC = (
    MetricInfo(
        "adherence", "Adherence", "", True, "1 if the object has the requested color and shape", 0.03, is_flag=True
    ),
    MetricInfo("color_right", "Color right", "", True, "1 if the object has the requested color", 0.03, is_flag=True),
    MetricInfo("shape_right", "Shape right", "", True, "1 if the object has the requested shape", 0.03, is_flag=True),
    MetricInfo("psnr_hole", "PSNR, masked", "dB", True, "in the masked region, relative to the ground truth", 0.3),
    MetricInfo("ssim_hole", "SSIM, masked", "", True, "mean of the SSIM map in the masked region", 0.01),
    MetricInfo("ms_ssim_hole", "MS-SSIM, masked", "", True, "in the bounding box of the masked region", 0.01),
    MetricInfo("psnr_kept", "PSNR, unmasked", "dB", True, "in the unmasked region, relative to the input", 1.0),
    MetricInfo("max_difference_kept", "Max change, unmasked", "levels", False, "largest change of a value", 1.0),
    MetricInfo(
        "seam",
        "Seam",
        "levels",
        False,
        "how far the step across the mask's border is from the ground truth's",
        1.0,
    ),
    MetricInfo("hole_change", "Change, masked", "levels", None, "mean change of the values", 1.0),
    MetricInfo("blank", "Blank", "", False, "1 if the painted pixels have almost no contrast", 0.01, is_flag=True),
    MetricInfo("saturated", "Saturated", "", False, "fraction of painted values at 0 or 255", 0.01),
    MetricInfo("colorfulness", "Colorfulness", "", None, "of the painted pixels, by Hasler and Suesstrunk", 1.0),
    MetricInfo(
        "psnr_to_reference", "PSNR to reference", "dB", True, "similarity to the reference's result", 1.0, 100.0
    ),
    MetricInfo("ssim_to_reference", "SSIM to reference", "", True, "similarity to the reference's result", 0.01, 1.0),
)
_FULL = (
    MetricInfo("lpips", "LPIPS", "", False, "around the masked region, distance from the ground truth", 0.01),
    MetricInfo("dists", "DISTS", "", False, "around the masked region, distance from the ground truth", 0.01),
    MetricInfo("clip_score", "CLIPScore", "", True, "match of image and caption: 100 times the cosine", 0.3),
    MetricInfo("clip_iqa", "CLIP-IQA", "", True, "more like a good photo than a bad one, 0 to 1", 0.02),
    MetricInfo("aesthetic", "Aesthetic", "", True, "LAION's predictor, about 1 to 10", 0.1),
    MetricInfo("pick_score", "PickScore", "", True, "predicted human preference, given the caption", 0.2),
    MetricInfo("hps", "HPS v2", "", True, "predicted human preference, given the caption", 0.2),
    MetricInfo(
        "fid", "FID", "", False, "all results and all ground truths; compare it only at equal numbers of images", 0.5
    ),
    MetricInfo("kid", "KID", "x 1000", False, "all results and all ground truths", 0.5),
    MetricInfo("cmmd", "CMMD", "", False, "all results and all ground truths, by CLIP", 0.02),
    MetricInfo(
        "lpips_to_reference", "LPIPS to reference", "", False, "distance from the reference's result", 0.01, 0.0
    ),
)
CATALOG: dict[str, MetricInfo] = {info.name: info for info in (*_BASIC, *_FULL)}
"""All metrics by name."""
QUALITY_METRICS = ("adherence", "lpips", "dists", "ssim_hole", "pick_score", "clip_score", "ssim_to_reference")
"""The candidates for the quality metric, if `metrics.quality` is not set: the first one that is available."""


def info(name: str) -> MetricInfo:
    """The catalog entry of `name`; a default entry for a metric of another version of fluxexp."""
    return CATALOG.get(name) or MetricInfo(name, name, "", None, "", 0.0)


def default_quality_metric(available: Iterable[str]) -> str | None:
    """The first of `QUALITY_METRICS` that is in `available`; None if there is none."""
    names = set(available)
    return next((name for name in QUALITY_METRICS if name in names), None)
