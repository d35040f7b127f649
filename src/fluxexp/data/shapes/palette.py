"""Names and values of colors, shapes, textures and backgrounds. A change here changes every scene.

The names appear in captions and keep their spelling: the tiny models were trained on them.
"""

from __future__ import annotations

from typing import Literal

RGB = tuple[int, int, int]

COLORS: dict[str, RGB] = {
    "red": (222, 30, 40),
    "orange": (255, 138, 0),
    "yellow": (252, 226, 36),
    "green": (24, 160, 62),
    "cyan": (40, 212, 228),
    "blue": (32, 72, 224),
    "purple": (132, 36, 184),
    "pink": (255, 128, 196),
    "white": (250, 250, 250),
    "black": (18, 18, 20),
}
"""Colors of objects. Their distance in RGB is at least 85 from each other and at least 75 from each background tone."""

INKS: dict[str, RGB] = {name: (r * 5 // 8, g * 5 // 8, b * 5 // 8) for name, (r, g, b) in COLORS.items()} | {
    "white": (184, 184, 186),
    "black": (96, 96, 98),
}
"""Second color of a striped or dotted object: the same hue, but darker (for black: lighter)."""

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "crescent", "hexagon", "diamond")
TEXTURES = ("plain", "striped", "dotted")
SIZES = ("small", "large")

RADII: dict[str, tuple[float, float]] = {"small": (0.125, 0.145), "large": (0.2, 0.235)}
"""Smallest and largest circumradius of an object, in units of the short side of the scene."""

TONES: dict[str, RGB] = {
    "grey": (152, 152, 152),
    "beige": (196, 182, 150),
    "slate": (112, 126, 146),
    "sage": (146, 162, 134),
    "mauve": (160, 134, 158),
    "tan": (176, 146, 116),
}
"""Muted colors of backgrounds."""

TONE_STEP = 20
"""The darkest and the lightest color of a background differ from its tone by this value in each channel."""

BACKGROUND_KINDS = ("plain", "shaded", "glowing", "checkered", "striped", "cloudy")

RegionKind = Literal["box", "ellipse", "blob", "scribble"]
REGION_KINDS: tuple[RegionKind, ...] = ("box", "ellipse", "blob", "scribble")

MASKED_GRAY = 128
"""Gray value of the masked region in a sample's `image`. It reveals nothing about the target."""
