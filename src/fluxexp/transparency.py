"""Transparent pictures, as all readers show and compare them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


def over_white(image: Image) -> Image:
    """`image` as RGB, on a white background where it is transparent. Colors of transparent pixels do not count."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    from PIL import Image as Pictures

    rgba = image.convert("RGBA")
    canvas = Pictures.new("RGB", rgba.size, "white")
    canvas.paste(rgba, mask=rgba.getchannel("A"))
    return canvas
