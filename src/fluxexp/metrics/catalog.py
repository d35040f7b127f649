"""Every metric by name: what it says, in which unit, which way is better. Imports nothing large."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """How a metric is to be read."""

    name: str
    title: str
    unit: str
    """Empty for a plain number."""
    higher_is_better: bool | None
    """None where neither is: the value says how things are, not how good they are."""
    description: str
    tolerance: float
    """By how much a mean may be worse before anybody cares, in the metric's unit: `metrics.tolerance` by default."""


_BASIC = (
    MetricInfo("adherence", "Adherence", "", True, "1 where colour and shape of the object are those asked for", 0.03),
    MetricInfo("color_right", "Colour right", "", True, "1 where the object has the colour asked for", 0.03),
    MetricInfo("shape_right", "Shape right", "", True, "1 where the object has the shape asked for", 0.03),
    MetricInfo("psnr_hole", "PSNR, hole", "dB", True, "inside of the mask, against the truth", 0.3),
    MetricInfo("ssim_hole", "SSIM, hole", "", True, "mean of the SSIM map inside of the mask, against the truth", 0.01),
    MetricInfo("ms_ssim_hole", "MS-SSIM, hole", "", True, "of the mask's bounding box, against the truth", 0.01),
    MetricInfo("psnr_kept", "PSNR, kept", "dB", True, "outside of the mask, against the input", 1.0),
    MetricInfo("max_difference_kept", "Largest change, kept", "levels", False, "outside of the mask, of 255", 1.0),
    MetricInfo(
        "seam", "Seam", "levels", False, "mean step across the mask's border, beyond that of the truth, of 255", 1.0
    ),
    MetricInfo("hole_change", "Hole change", "levels", None, "mean change inside of the mask, of 255", 1.0),
    MetricInfo("blank", "Blank", "", False, "1 where what was made has hardly any contrast", 0.01),
    MetricInfo("saturated", "Saturated", "", False, "share of what was made that is at 0 or 255", 0.01),
    MetricInfo("psnr_to_reference", "PSNR to reference", "dB", True, "of the result, against the reference's", 1.0),
    MetricInfo("ssim_to_reference", "SSIM to reference", "", True, "of the result, against the reference's", 0.01),
)
_FULL = (
    MetricInfo("lpips", "LPIPS", "", False, "around the hole, against the truth", 0.01),
    MetricInfo("dists", "DISTS", "", False, "around the hole, against the truth", 0.01),
    MetricInfo("clip_score", "CLIPScore", "", True, "fit of picture and caption: 100 times the cosine", 0.3),
    MetricInfo("clip_iqa", "CLIP-IQA", "", True, "good photo against bad photo, 0 to 1", 0.02),
    MetricInfo("aesthetic", "Aesthetic", "", True, "LAION's predictor, about 1 to 10", 0.1),
    MetricInfo("pick_score", "PickScore", "", True, "what people would pick, given the caption", 0.2),
    MetricInfo("hps", "HPS v2", "", True, "what people would prefer, given the caption", 0.2),
    MetricInfo("fid", "FID", "", False, "of all results against all truths; too high for few of them", 0.5),
    MetricInfo("kid", "KID", "x 1000", False, "of all results against all truths", 0.5),
    MetricInfo("cmmd", "CMMD", "", False, "of all results against all truths, by CLIP", 0.02),
    MetricInfo("lpips_to_reference", "LPIPS to reference", "", False, "of the result, against the reference's", 0.01),
)
CATALOG: dict[str, MetricInfo] = {info.name: info for info in (*_BASIC, *_FULL)}
"""By name."""
JUDGES = ("adherence", "lpips", "dists", "ssim_hole", "pick_score", "clip_score", "ssim_to_reference")
"""Metrics by which points are judged where `metrics.quality` names none: the first of them that there is."""


def info(name: str) -> MetricInfo:
    """What is known of the metric `name`, which may be of another version of fluxexp."""
    return CATALOG.get(name) or MetricInfo(name, name, "", None, "", 0.0)


def default_judge(available: Iterable[str]) -> str | None:
    """The metric to judge by among those `available`."""
    there = set(available)
    return next((name for name in JUDGES if name in there), None)
