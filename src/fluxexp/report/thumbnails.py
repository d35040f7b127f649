"""Pictures as small data URIs that a page carries in itself, as large as its budget of bytes allows."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

SIDES = (384, 320, 256, 208, 176, 144, 120, 96, 80)
"""Pixels of a thumbnail's longer side, of which the largest is taken that fits."""
_QUALITY = 78
_METHOD = 2
"""Of libwebp, 0 (fast) to 6 (small)."""


@dataclass(frozen=True, slots=True)
class Thumbnails:
    """Makes data URIs of pictures at most `side` pixels long. None is enlarged."""

    side: int

    def picture(self, image: Image.Image) -> str:
        """A picture as lossy WebP."""
        return _uri(self._small(image.convert("RGB"), Image.Resampling.LANCZOS), quality=_QUALITY)

    def mask(self, mask: Image.Image) -> str:
        """A mask as lossless WebP: white where it is painted, transparent elsewhere.

        So one picture serves to be looked at and to be laid over another.
        """
        alpha = self._small(mask.convert("L"), Image.Resampling.BOX)
        image = Image.new("RGBA", alpha.size, "white")
        image.putalpha(alpha.point(lambda value: 255 if value >= 128 else 0))
        return _uri(image, lossless=True)

    def _small(self, image: Image.Image, resample: Image.Resampling) -> Image.Image:
        scale = self.side / max(image.size)
        if scale >= 1:
            return image
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        return image.resize(size, resample, reducing_gap=2.0 if image.mode == "RGB" else None)


def fitting(pictures: Sequence[Image.Image], number: int, budget: int) -> Thumbnails:
    """The largest thumbnails of which `number` take at most `budget` bytes, if all are like `pictures`."""
    for side in SIDES:
        thumbnails = Thumbnails(side)
        sizes = [len(thumbnails.picture(picture)) for picture in pictures]
        if not sizes or sum(sizes) / len(sizes) * number <= budget:
            return thumbnails
    return Thumbnails(SIDES[-1])


def _uri(image: Image.Image, *, quality: int = 50, lossless: bool = False) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, lossless=lossless, method=_METHOD)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
