"""Draws captioned scenes with one masked object. A scene is the same on every machine and at any resolution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fluxexp.arrays import ImageArray
from fluxexp.data.shapes.captions import position, scene_caption, target_caption
from fluxexp.data.shapes.paint import paint_background, paint_masked_region, paint_object
from fluxexp.data.shapes.palette import MASKED_GRAY
from fluxexp.data.shapes.scene_layout import SceneLayout, lay_out
from fluxexp.data.shapes.styles import Style
from fluxexp.data.stable_random import StableRandom


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A drawn scene.

    `truth` is RGB of shape (height, width, 3). `mask` has shape (height, width): 255 in the masked region, which covers
    every pixel of the target, and 0 elsewhere. `caption` describes the target.
    `traits` has the keys shape, color, texture, size and position (all of the target), background, mask (the kind of
    the masked region) and scene (a caption of the whole scene).
    """

    truth: ImageArray
    mask: ImageArray
    caption: str
    traits: Mapping[str, str]

    @property
    def masked_scene(self) -> ImageArray:
        """A copy of the scene with a gray masked region: RGB of shape (height, width, 3)."""
        return np.where(self.mask[..., None] > 0, np.uint8(MASKED_GRAY), self.truth)


def draw_scene(seed: int, index: int, height: int, width: int, style: Style | None = None) -> Scene:
    """Draw scene number `index` of the series `seed`, with `height` x `width` pixels (at least 16 x 16).

    The content depends only on seed, index and aspect ratio: 128 x 128 and 256 x 256 pixels show the same scene. In
    `truth`, the target is drawn in `style`; nothing else depends on the style.
    """
    rng = StableRandom("shapes", seed, index)
    short = min(height, width)
    layout = lay_out(rng, width / short, height / short)
    caption = target_caption(rng, layout)
    truth = paint_background(layout, rng, height, width)
    for item in layout.others:
        paint_object(truth, item)
    rows, columns, shown = paint_object(truth, layout.target, style)
    mask = paint_masked_region(layout, height, width)
    mask[rows, columns][shown > 0] = 255
    return Scene(truth=truth, mask=mask, caption=caption, traits=_traits(layout))


def _traits(layout: SceneLayout) -> dict[str, str]:
    target = layout.target
    return {
        "shape": target.shape,
        "color": target.color,
        "texture": target.texture,
        "size": target.size,
        "position": position(layout),
        "background": f"{layout.background.kind} {layout.background.tone}",
        "mask": layout.masked_region.kind,
        "scene": scene_caption(layout),
    }
