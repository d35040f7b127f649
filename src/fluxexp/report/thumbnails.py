"""Makes thumbnails as data URIs, as large as the page's byte budget allows."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

SIDES = (384, 320, 256, 208, 176, 144, 120, 96, 80)
"""Candidate lengths of a thumbnail's longer side, in pixels. The largest that fits the budget is used."""
_QUALITY = 78
_METHOD = 2
"""libwebp's compression method, 0 (fast) to 6 (small)."""


@dataclass(frozen=True, slots=True)
class Thumbnails:
    """Makes data URIs of images at most `side` pixels long. It never upsamples an image."""

    side: int

    def picture(self, image: Image.Image) -> str:
        """`image` as lossy WebP."""
        return _uri(self._small(image.convert("RGB"), Image.Resampling.LANCZOS), quality=_QUALITY)

    def mask(self, mask: Image.Image) -> str:
        """`mask` as lossless WebP: white and opaque in the masked region, transparent elsewhere.

        The page uses the same file as a picture and as an overlay.
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
    """The largest thumbnails that fit `budget`.

    Args:
        pictures: some of the pictures, as a sample of all.
        number: number of all pictures.
        budget: bytes for all thumbnails together. The smallest size can exceed it.
    """
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
