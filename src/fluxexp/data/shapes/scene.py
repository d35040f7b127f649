"""Draws scene number i: captioned pictures with one object masked. The same on every machine, at any resolution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fluxexp.arrays import ImageArray
from fluxexp.data.shapes.captions import position, scene_caption, target_caption
from fluxexp.data.shapes.paint import paint_backdrop, paint_masked_region, paint_thing
from fluxexp.data.shapes.palette import HOLE_GREY
from fluxexp.data.shapes.scene_layout import SceneLayout, lay_out
from fluxexp.data.stable_random import StableRandom


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A drawn scene.

    `truth` is uint8 RGB of shape (height, width, 3); `mask` is uint8 of shape (height, width) with 255 over the hole,
    which covers every pixel of the target, and 0 elsewhere. `caption` is about the target.
    `traits` are shape, color, texture, size and position of the target, background, mask (the kind of hole) and scene
    (a caption of everything there is).
    """

    truth: ImageArray
    mask: ImageArray
    caption: str
    traits: Mapping[str, str]

    @property
    def masked_scene(self) -> ImageArray:
        """The scene with neutral grey for the hole: uint8 RGB of shape (height, width, 3), a new array."""
        return np.where(self.mask[..., None] > 0, np.uint8(HOLE_GREY), self.truth)


def draw_scene(seed: int, index: int, height: int, width: int) -> Scene:
    """Scene number `index` of the endless series `seed`, `height` by `width` pixels (any from 16 up).

    What is in it depends on seed, index and the aspect only: 128 x 128 and 256 x 256 show the same.
    """
    dice = StableRandom("shapes", seed, index)
    short = min(height, width)
    layout = lay_out(dice, width / short, height / short)
    caption = target_caption(dice, layout)
    truth = paint_backdrop(layout, dice, height, width)
    for thing in layout.others:
        paint_thing(truth, thing)
    rows, columns, shown = paint_thing(truth, layout.target)
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
        "background": f"{layout.backdrop.kind} {layout.backdrop.tone}",
        "mask": layout.masked_region.kind,
        "scene": scene_caption(layout),
    }
