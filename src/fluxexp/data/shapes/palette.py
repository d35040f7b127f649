"""The words of a scene: colours, shapes, textures and backgrounds. Changing a value here changes every scene."""

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
"""Colours of objects. Any two are at least 85 apart in RGB, and at least 75 from every background tone."""

INKS: dict[str, RGB] = {name: (r * 5 // 8, g * 5 // 8, b * 5 // 8) for name, (r, g, b) in COLORS.items()} | {
    "white": (184, 184, 186),
    "black": (96, 96, 98),
}
"""Second colour of a striped or dotted object: the same hue, darker (of black, lighter)."""

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "crescent", "hexagon", "diamond")
TEXTURES = ("plain", "striped", "dotted")
SIZES = ("small", "large")

RADII: dict[str, tuple[float, float]] = {"small": (0.125, 0.145), "large": (0.2, 0.235)}
"""Circumscribed radius of an object, from and to, where the short side of the scene is 1."""

TONES: dict[str, RGB] = {
    "grey": (152, 152, 152),
    "beige": (196, 182, 150),
    "slate": (112, 126, 146),
    "sage": (146, 162, 134),
    "mauve": (160, 134, 158),
    "tan": (176, 146, 116),
}
"""Muted colours of backgrounds."""

TONE_STEP = 20
"""A background runs from its tone less this to its tone plus this, in each channel."""

BACKDROPS = ("plain", "shaded", "glowing", "checkered", "striped", "cloudy")

HoleKind = Literal["box", "ellipse", "blob", "scribble"]
HOLES: tuple[HoleKind, ...] = ("box", "ellipse", "blob", "scribble")

HOLE_GREY = 128
"""Value that stands in for the hole in a sample's `image`: neutral, so that it gives nothing away."""
