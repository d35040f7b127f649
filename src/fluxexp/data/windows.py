"""Chooses the part of an image that is placed at the working size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels."""
Size = tuple[int, int]
"""(width, height) in pixels."""


def window_with_most(own: Size, working: Size, mask: Image.Image | None) -> Box:
    """The largest window with the working aspect ratio, at the position that contains most of the mask.

    Among equal positions, the one that has the mask closest to its center. Without a mask, the window in the middle.
    """
    scale = min(own[0] / working[0], own[1] / working[1])
    width, height = (max(1, min(o, round(w * scale))) for o, w in zip(own, working, strict=True))
    if mask is None:
        left, top = (own[0] - width) // 2, (own[1] - height) // 2
        return left, top, left + width, top + height
    pixels = np.asarray(mask) > 0
    left = _best_start(np.count_nonzero(pixels, axis=0), width)
    top = _best_start(np.count_nonzero(pixels, axis=1), height)
    return left, top, left + width, top + height


def window_around(mask: Image.Image, working: Size, padding: int) -> Box:
    """The bounding box of `mask` with `padding` pixels around it, extended to the working aspect ratio.

    It stays inside the image, so its aspect ratio differs where the image is too small. The arithmetic is that of
    `VaeImageProcessor.get_crop_region` of diffusers.
    """
    box = mask.getbbox() or (0, 0, *mask.size)
    left, right = max(box[0] - padding, 0), min(box[2] + padding, mask.width)
    top, bottom = max(box[1] - padding, 0), min(box[3] + padding, mask.height)
    ratio = working[0] / working[1]
    if (right - left) / (bottom - top) > ratio:
        top, bottom = _extended(top, bottom, (right - left) / ratio, mask.height)
    else:
        left, right = _extended(left, right, (bottom - top) * ratio, mask.width)
    return left, top, right, bottom


def covered(mask: Image.Image, window: Box) -> float:
    """Fraction of the masked pixels that are in `window`; 1 for an empty mask."""
    total = mask.histogram()[255]
    return mask.crop(window).histogram()[255] / total if total else 1.0


def _best_start(counts: NDArray[np.intp], length: int) -> int:
    """Start of the interval of `length` with the largest sum of `counts`.

    Among equal sums, the interval whose center is closest to the center of the nonzero counts.
    """
    sums = np.concatenate([[0], np.cumsum(counts)])
    held = sums[length:] - sums[:-length]
    used = np.flatnonzero(counts)
    ends = int(used[0]) + int(used[-1]) + 1 if used.size else counts.size
    best = np.flatnonzero(held == held.max())
    return int(best[np.argmin(np.abs(best - (ends - length) // 2))])


def _extended(start: int, end: int, length: float, limit: int) -> tuple[int, int]:
    """The interval from `start` to `end`, extended on both sides to `length` and moved into [0, `limit`]."""
    more = int(length - (end - start))
    start, end = start - more // 2, end + more - more // 2
    moved = max(end - limit, 0)
    start, end = start - moved, end - moved
    return (start, end) if start >= 0 else (0, min(end - start, limit))
