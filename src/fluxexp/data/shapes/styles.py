"""Styles in which the target of a scene can be drawn. Embedded LoRAs were trained on them (`tools/train_tiny_lora`)."""

from __future__ import annotations

from typing import Literal

from fluxexp.data.shapes.palette import RGB

Style = Literal["outlined", "pastel"]
"""outlined: only the outline of the object, in its color; the background shows inside. pastel: in pale colors."""
STYLES: tuple[Style, ...] = ("outlined", "pastel")

OUTLINE_WIDTH = 0.036
"""Width of the line of an outlined object, in units of the short side of the scene."""


def pale(color: RGB) -> RGB:
    """The color with three parts of white on two parts of itself."""
    red, green, blue = ((2 * value + 3 * 255) // 5 for value in color)
    return red, green, blue
