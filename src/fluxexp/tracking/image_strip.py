"""The images of one row of the table of samples, side by side, for a panel of images."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image

from fluxexp.tracking.sample_row import IMAGE_COLUMNS, decode_thumbnail

MAX_STRIPS = 32
"""The panel has the first samples, at most this number."""
_GAP_PX = 4
_MAX_CAPTION = 200


def image_strip(row: Mapping[str, str | None]) -> Image.Image | None:
    """All pictures of `row` in the order of `IMAGE_COLUMNS`, as far as it has them; None if it has none."""
    images = [decode_thumbnail(content) for name in IMAGE_COLUMNS if (content := row[name]) is not None]
    if not images:
        return None
    width = sum(image.width for image in images) + _GAP_PX * (len(images) - 1)
    strip = Image.new("RGB", (width, max(image.height for image in images)), "white")
    left = 0
    for image in images:
        strip.paste(image, (left, 0))
        left += image.width + _GAP_PX
    return strip


def caption(row: Mapping[str, str | None]) -> str:
    """The names of the images in the strip, and the sample with its prompt."""
    shown = " | ".join(name for name in IMAGE_COLUMNS if row[name] is not None)
    text = f"{row['sample']}: {shown}" + (f" \u00b7 {row['prompt']}" if row["prompt"] else "")
    return text if len(text) <= _MAX_CAPTION else f"{text[:_MAX_CAPTION]}\u2026"
