"""Draws the outlines of a scene, as a control image for it."""

from __future__ import annotations

import numpy as np

from fluxexp.arrays import ImageArray

_STEP = 24
"""Neighboring pixels whose channels differ by at least this much have an outline between. Backgrounds vary less."""


def outlines(scene: ImageArray) -> ImageArray:
    """White lines on black where the colors of `scene` change, as an edge detector draws them.

    Args:
        scene: RGB of shape (height, width, 3).

    Returns:
        RGB of the same shape. Integer arithmetic, so that it is the same on every machine.
    """
    colors = scene.astype(np.int16)
    is_edge = np.zeros(scene.shape[:2], dtype=np.bool_)
    is_edge[:, 1:] |= np.abs(np.diff(colors, axis=1)).max(axis=2) >= _STEP
    is_edge[1:] |= np.abs(np.diff(colors, axis=0)).max(axis=2) >= _STEP
    lines = np.where(is_edge, np.uint8(255), np.uint8(0))
    return np.repeat(lines[..., None], 3, axis=2)
