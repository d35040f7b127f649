"""Similarity of two images: PSNR, SSIM, MS-SSIM. Both images are uint8 RGB and have the same size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluxexp.arrays import Float64Array, ImageArray

PSNR_IDENTICAL = 100.0
"""Largest PSNR, in dB. The PSNR of identical images would be infinite, which JSON and means cannot represent."""
MS_SSIM_MIN_SIDE = 176
"""Smallest side in pixels: after 4 halvings, an 11 x 11 window must fit into the image."""

_WINDOW = 11
_SIGMA = 1.5
_TRUNCATE = 3.5
"""The window reaches 5 = round(3.5 * 1.5) values from its center."""
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(a: ImageArray, b: ImageArray) -> float:
    """Peak signal-to-noise ratio in dB, at most `PSNR_IDENTICAL`: 10 log10(255^2 / MSE). The MSE is over all values."""
    difference = a.astype(np.float64) - b
    mse = float(np.mean(difference * difference))
    return PSNR_IDENTICAL if mse == 0 else min(PSNR_IDENTICAL, 10 * math.log10(255**2 / mse))


@dataclass(frozen=True, slots=True)
class Windowed:
    """An image with what SSIM needs of its windows, so that it can be compared with several images."""

    pixels: ImageArray
    mean: Float64Array
    """Weighted mean of the window around each value, of shape (3, height, width), like `square`."""
    square: Float64Array
    """Weighted mean of the squares."""

    @classmethod
    def of(cls, pixels: ImageArray) -> Windowed:
        """An image smaller than a window is padded with its edge pixels."""
        planes = _planes(pixels)
        return cls(pixels, _window_means(planes), _window_means(planes * planes))


def ssim_map(a: ImageArray, b: ImageArray) -> Float64Array:
    """Structural similarity (SSIM) at each pixel, as the mean over channels, of shape (height, width).

    Gaussian window of 11 x 11 with sigma 1.5, K1 = 0.01, K2 = 0.03 (Wang et al. 2004). Images smaller than the window
    are padded with their edge pixels.
    """
    return windowed_ssim_map(Windowed.of(a), Windowed.of(b))


def windowed_ssim_map(a: Windowed, b: Windowed) -> Float64Array:
    """As `ssim_map`. The values have the bits of `structural_similarity` of scikit-image."""
    # The order of operations decides about the last bits: it is the one of scikit-image.
    covariance = _window_means(_planes(a.pixels) * _planes(b.pixels)) - a.mean * b.mean
    variance = (a.square - a.mean * a.mean) + (b.square - b.mean * b.mean)
    luminance = (2 * a.mean * b.mean + _C1) * (2 * covariance + _C2)
    similarity = luminance / ((a.mean**2 + b.mean**2 + _C1) * (variance + _C2))
    height, width = a.pixels.shape[:2]
    mean: Float64Array = np.ascontiguousarray(similarity[:, :height, :width].transpose(1, 2, 0)).mean(axis=2)
    return mean


def _planes(pixels: ImageArray) -> Float64Array:
    """float64 of shape (3, height, width), with at least `_WINDOW` values per side."""
    height, width = pixels.shape[:2]
    if min(height, width) < _WINDOW:
        grow = [(0, max(0, _WINDOW - height)), (0, max(0, _WINDOW - width)), (0, 0)]
        pixels = np.pad(pixels, grow, mode="edge")
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float64)


def _window_means(planes: Float64Array) -> Float64Array:
    """Weighted mean of the window around each value of `planes`, of shape (3, height, width)."""
    from scipy.ndimage import gaussian_filter  # slow to import

    means: Float64Array = gaussian_filter(planes, (0, _SIGMA, _SIGMA), mode="reflect", truncate=_TRUNCATE)
    return means


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
