"""How alike two pictures are: PSNR, SSIM, MS-SSIM. Pictures are uint8 RGB, of one size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fluxexp.arrays import Float64Array, ImageArray

PSNR_IDENTICAL = 100.0
"""dB, the most that is given. Pictures without any difference have an infinite PSNR, and JSON and means know none."""
MS_SSIM_LEAST = 176
"""Least side: the library wants a window of 11 to fit a sixteenth of it."""


def psnr(a: ImageArray, b: ImageArray) -> float:
    """Peak signal-to-noise ratio in dB: 10 log10(255^2 / MSE), the MSE over all values; at most `PSNR_IDENTICAL`."""
    difference = a.astype(np.float64) - b
    mse = float(np.mean(difference * difference))
    return PSNR_IDENTICAL if mse == 0 else min(PSNR_IDENTICAL, 10 * math.log10(255**2 / mse))


def ssim_map(a: ImageArray, b: ImageArray) -> Float64Array:
    """Structural similarity at each pixel, the mean over channels: (height, width).

    Gaussian window of 11 x 11 with sigma 1.5, K1 = 0.01, K2 = 0.03 (Wang et al. 2004), by scikit-image. Pictures
    smaller than the window are repeated at their edges up to it.
    """
    from skimage.metrics import structural_similarity  # takes most of a second

    height, width = a.shape[:2]
    grow = [(0, max(0, 11 - height)), (0, max(0, 11 - width)), (0, 0)]
    _, similarity = structural_similarity(
        np.pad(a, grow, mode="edge"),
        np.pad(b, grow, mode="edge"),
        data_range=255,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    mean: Float64Array = similarity[:height, :width].mean(axis=2)
    return mean


def ms_ssim(a: ImageArray, b: ImageArray) -> float | None:
    """Multi-scale SSIM over five scales (Wang et al. 2003), by torchmetrics; None below `MS_SSIM_LEAST` a side."""
    if min(a.shape[:2]) < MS_SSIM_LEAST:
        return None
    # Takes seconds, and small pictures need none of it.
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    value = multiscale_structural_similarity_index_measure(_tensor(a), _tensor(b), data_range=255.0, normalize="relu")
    return float(value)


def _tensor(pixels: ImageArray) -> Any:
    """(1, 3, height, width), float32."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float()
