"""Draws masks for samples that have none. A mask depends only on its kind, the image size and the sample's key."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

from PIL import Image, ImageDraw

from fluxexp.config.schema import MaskKind
from fluxexp.data.stable_random import StableRandom

KINDS: tuple[str, ...] = get_args(MaskKind)
_SIDES = ("left", "top", "right", "bottom")


def draw_mask(kind: MaskKind, size: tuple[int, int], key: str) -> Image.Image:
    """Draw a mask of `size` (width, height), mode L with values 0 and 255.

    box: a rectangle at a random position; center: the middle half of each side; strokes: two to four thick pen strokes;
    outpaint: bands along one to three sides.

    The mask is never empty, and leaves at least one pixel unmasked unless the image has only one pixel.
    """
    mask = Image.new("L", size, 0)
    _PAINTERS[kind](mask, StableRandom("mask", kind, key))
    if mask.getextrema() == (255, 255) and size != (1, 1):  # Possible if a side has only a few pixels.
        mask.putpixel((size[0] // 2, size[1] // 2), 0)
    return mask


def _box(mask: Image.Image, rng: StableRandom) -> None:
    width, height = mask.size
    box_width, box_height = _length(width, rng.uniform(0.3, 0.7)), _length(height, rng.uniform(0.3, 0.7))
    left, top = rng.below(width - box_width + 1), rng.below(height - box_height + 1)
    mask.paste(255, (left, top, left + box_width, top + box_height))


def _center(mask: Image.Image, rng: StableRandom) -> None:
    width, height = mask.size
    box_width, box_height = _length(width, 0.5), _length(height, 0.5)
    left, top = (width - box_width) // 2, (height - box_height) // 2
    mask.paste(255, (left, top, left + box_width, top + box_height))


def _strokes(mask: Image.Image, rng: StableRandom) -> None:
    width, height = mask.size
    pen = max(1, round(min(width, height) * rng.uniform(0.1, 0.18)))
    draw = ImageDraw.Draw(mask)
    for _ in range(2 + rng.below(3)):
        points = [(rng.uniform(0.15, 0.85) * width, rng.uniform(0.15, 0.85) * height) for _ in range(3)]
        draw.line(points, fill=255, width=pen, joint="curve")
        for x, y in points:
            draw.ellipse((x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2), fill=255)


def _outpaint(mask: Image.Image, rng: StableRandom) -> None:
    width, height = mask.size
    for side in rng.shuffle(_SIDES)[: 1 + rng.below(3)]:
        fraction = rng.uniform(0.15, 0.3)
        across, down = _length(width, fraction), _length(height, fraction)
        boxes = {
            "left": (0, 0, across, height),
            "top": (0, 0, width, down),
            "right": (width - across, 0, width, height),
            "bottom": (0, height - down, width, height),
        }
        mask.paste(255, boxes[side])


def _length(whole: int, fraction: float) -> int:
    """`fraction` of `whole` pixels: at least 1 and, if possible, at most `whole` - 1."""
    return max(1, min(whole - 1, round(whole * fraction)))


_PAINTERS: dict[str, Callable[[Image.Image, StableRandom], None]] = {
    "box": _box,
    "center": _center,
    "strokes": _strokes,
    "outpaint": _outpaint,
}
