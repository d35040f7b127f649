"""Similarity of two images: PSNR, SSIM, MS-SSIM. Both images are uint8 RGB and have the same size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fluxexp.arrays import Float64Array, ImageArray

PSNR_IDENTICAL = 100.0
"""Largest PSNR, in dB. The PSNR of identical images would be infinite, which JSON and means cannot represent."""
MS_SSIM_MIN_SIDE = 176
"""Smallest side in pixels: after 4 halvings, an 11 x 11 window must fit into the image."""


def psnr(a: ImageArray, b: ImageArray) -> float:
    """Peak signal-to-noise ratio in dB, at most `PSNR_IDENTICAL`: 10 log10(255^2 / MSE). The MSE is over all values."""
    difference = a.astype(np.float64) - b
    mse = float(np.mean(difference * difference))
    return PSNR_IDENTICAL if mse == 0 else min(PSNR_IDENTICAL, 10 * math.log10(255**2 / mse))


def ssim_map(a: ImageArray, b: ImageArray) -> Float64Array:
    """Structural similarity (SSIM) at each pixel, as the mean over channels, of shape (height, width).

    Gaussian window of 11 x 11 with sigma 1.5, K1 = 0.01, K2 = 0.03 (Wang et al. 2004), computed by scikit-image. Images
    smaller than the window are padded with their edge pixels.
    """
    from skimage.metrics import structural_similarity  # this import takes most of a second

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
    """Multi-scale SSIM over five scales (Wang et al. 2003), computed by torchmetrics.

    None if a side is shorter than `MS_SSIM_MIN_SIDE`.
    """
    if min(a.shape[:2]) < MS_SSIM_MIN_SIDE:
        return None
    # This import takes seconds, and small images do not need it.
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    value = multiscale_structural_similarity_index_measure(_tensor(a), _tensor(b), data_range=255.0, normalize="relu")
    return float(value)


def _tensor(pixels: ImageArray) -> Any:
    """float32 of shape (1, 3, height, width), values from 0 to 255."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float()
