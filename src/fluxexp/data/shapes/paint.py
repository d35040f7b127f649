"""Renders the parts of a scene layout: its background, its objects and its masked region."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fluxexp.arrays import Float64Array, ImageArray
from fluxexp.data.shapes.distance import DISTANCES, capsule
from fluxexp.data.shapes.palette import COLORS, INKS, RGB, TONE_STEP, TONES
from fluxexp.data.shapes.raster import AlphaArray, alpha, coverage, dots, mix, pixel_grid, stripes
from fluxexp.data.shapes.scene_layout import Background, MaskedRegion, SceneLayout, SceneObject
from fluxexp.data.shapes.styles import OUTLINE_WIDTH, Style, pale
from fluxexp.data.stable_random import StableRandom

STRIPE_PERIOD, STRIPE_DUTY = 0.075, 0.38
DOT_PERIOD, DOT_RADIUS = 0.08, 0.026
RIM = 0.012
"""Width of the untextured rim of a textured object. The rim keeps the outline of small objects clear."""
NOISE_CELLS = 5
"""Number of noise cells along the short side, in the coarse octave of a cloudy background."""


def paint_background(layout: SceneLayout, rng: StableRandom, height: int, width: int) -> ImageArray:
    """The background as RGB of shape (height, width, 3)."""
    brightness = _background_brightness(layout, rng, height, width)
    red, green, blue = TONES[layout.background.tone]
    dark = (red - TONE_STEP, green - TONE_STEP, blue - TONE_STEP)
    light = (red + TONE_STEP, green + TONE_STEP, blue + TONE_STEP)
    return mix(dark, light, np.broadcast_to(alpha(brightness), (height, width)))


def paint_object(canvas: ImageArray, item: SceneObject, style: Style | None = None) -> tuple[slice, slice, AlphaArray]:
    """Draw an object onto `canvas` in place.

    Returns the rows and the columns of the object's window, and the opacity in this window that the object has without
    a style.
    """
    height, width = canvas.shape[:2]
    pixel = 1 / min(height, width)
    rows, columns = _window(item.y, item.radius, height, pixel), _window(item.x, item.radius, width, pixel)
    x, y = pixel_grid(height, width)
    u, v = _rotate(x[:, columns] - item.x, y[rows] - item.y, item.angle)
    distance = DISTANCES[item.shape](u / item.radius, v / item.radius) * item.radius
    shown = alpha(coverage(distance, pixel))
    if style == "outlined":
        line = alpha(coverage(np.abs(distance + OUTLINE_WIDTH / 2) - OUTLINE_WIDTH / 2, pixel))
        canvas[rows, columns] = mix(canvas[rows, columns], COLORS[item.color], line)
        return rows, columns, shown
    soften = pale if style == "pastel" else _unchanged
    paint = _texture(item, u, v, coverage(distance + RIM, pixel), pixel, soften)
    canvas[rows, columns] = mix(canvas[rows, columns], paint, shown)
    return rows, columns, shown


def paint_masked_region(layout: SceneLayout, height: int, width: int) -> ImageArray:
    """The masked region around the target: 255 inside and 0 outside, of shape (height, width)."""
    x, y = pixel_grid(height, width)
    masked_region, target = layout.masked_region, layout.target
    distance = _region_distance(masked_region, target.radius + masked_region.margin, x - target.x, y - target.y)
    # The tolerance keeps pixels on the edge inside, whatever the rounding of the machine.
    return np.where(distance < 1e-9, np.uint8(255), np.uint8(0))


def _background_brightness(layout: SceneLayout, rng: StableRandom, height: int, width: int) -> Float64Array:
    """Brightness of the background between its dark (0) and its light color (1). Broadcasts to (height, width)."""
    x, y = pixel_grid(height, width)
    pixel = 1 / min(height, width)
    background = layout.background
    match background.kind:
        case "shaded":
            u, _ = _rotate(x - layout.width / 2, y - layout.height / 2, background.angle)
            return u / math.hypot(layout.width, layout.height) + 0.5
        case "glowing":
            return 1 - np.hypot(x - background.x, y - background.y) / (0.8 * max(layout.width, layout.height))
        case "checkered":
            return _checker(background, x, y, pixel)
        case "striped":
            u, _ = _rotate(x, y, background.angle)
            return stripes(u, background.period * 0.7, 0.5, pixel)
        case "cloudy":
            return 0.65 * _noise(rng, x, y, NOISE_CELLS) + 0.35 * _noise(rng, x, y, 3 * NOISE_CELLS)
        case _:
            return np.full((1, 1), 0.5)


def _checker(background: Background, x: Float64Array, y: Float64Array, pixel: float) -> Float64Array:
    across = stripes(x - background.x, background.period, 0.5, pixel)
    along = stripes(y - background.y, background.period, 0.5, pixel)
    return across * (1 - along) + along * (1 - across)


def _noise(rng: StableRandom, x: Float64Array, y: Float64Array, cells: int) -> Float64Array:
    """Value noise: random values on a lattice with `cells` points per unit, interpolated smoothly."""
    columns, rows = int(x[0, -1] * cells) + 2, int(y[-1, 0] * cells) + 2
    lattice = np.array([[rng.uniform(0, 1) for _ in range(columns)] for _ in range(rows)])
    column, row = (x[0] * cells).astype(np.intp), (y[:, 0] * cells).astype(np.intp)
    across, along = _smooth(x[0] * cells - column), _smooth(y[:, 0] * cells - row)[:, None]
    lines = lattice[:, column] * (1 - across) + lattice[:, column + 1] * across
    return lines[row] * (1 - along) + lines[row + 1] * along


def _smooth(t: Float64Array) -> Float64Array:
    """The smoothstep polynomial."""
    return t * t * (3 - 2 * t)


def _unchanged(color: RGB) -> RGB:
    return color


def _texture(
    item: SceneObject,
    u: Float64Array,
    v: Float64Array,
    within: Float64Array,
    pixel: float,
    soften: Callable[[RGB], RGB],
) -> ImageArray | RGB:
    """Colors of the object at every pixel of its window. Its second color appears only where `within` is above 0."""
    color, second = soften(COLORS[item.color]), soften(INKS[item.color])
    if item.texture == "plain":
        return color
    s, t = _rotate(u, v, item.texture_angle)
    if item.texture == "striped":
        ink = stripes(s, STRIPE_PERIOD, STRIPE_DUTY, pixel)
    else:
        ink = dots(s, t, DOT_PERIOD, DOT_RADIUS, pixel)
    return mix(color, second, alpha(ink * within))


def _region_distance(masked_region: MaskedRegion, reach: float, x: Float64Array, y: Float64Array) -> Float64Array:
    """Negative inside the masked region. `x` and `y` are relative to the target's center.

    A region of any kind contains the disc of radius `reach`. The kinds differ in what they contain beyond it.
    """
    a, b, c, d = masked_region.numbers
    slack = 0.06
    match masked_region.kind:
        case "box":
            across = np.maximum(x - reach - slack * a, -x - reach - slack * b)
            return np.maximum(across, np.maximum(y - reach - slack * c, -y - reach - slack * d))
        case "ellipse":
            u, v = _rotate(x, y, a * math.pi)
            return np.hypot(u / (reach + slack * b), v / (reach + 2 * slack * c)) - 1
        case "blob":
            angle = np.arctan2(y, x)
            waves = np.sin(2 * angle + 7 * a) + np.sin(3 * angle + 7 * b) + 0.7 * np.sin(5 * angle + 7 * c)
            return np.hypot(x, y) - reach - 0.025 * (2.7 + waves) * (0.5 + d)
        case "scribble":
            return _scribble(masked_region, reach, x, y)


def _scribble(masked_region: MaskedRegion, reach: float, x: Float64Array, y: Float64Array) -> Float64Array:
    """Five parallel strokes of a thick pen that cover the disc of radius `reach`."""
    angle, *ends = masked_region.numbers
    u, v = _rotate(x, y, angle * math.pi)
    pen = reach * 0.36
    distance = np.full(np.broadcast_shapes(x.shape, y.shape), np.inf)
    for stroke in range(-2, 3):
        offset = stroke * reach * 0.4
        half = math.sqrt(reach * reach - offset * offset)
        start, end = (reach * 0.3 * ends[(stroke + shift) % 3] for shift in (0, 1))
        line = capsule(u, v, (-half - start + pen * 0.5, offset), (half + end - pen * 0.5, offset), pen)
        distance = np.minimum(distance, line)
    return distance


def _rotate(x: Float64Array, y: Float64Array, angle: float) -> tuple[Float64Array, Float64Array]:
    """Coordinates of (x, y) in a frame that is rotated by `angle`, in radians."""
    cos, sin = math.cos(angle), math.sin(angle)
    return cos * x + sin * y, cos * y - sin * x


def _window(center: float, radius: float, length: int, pixel: float) -> slice:
    """The pixels that an object can touch along one axis, plus one on each side for anti-aliasing."""
    low, high = (center - radius) / pixel, (center + radius) / pixel
    return slice(max(math.floor(low) - 1, 0), min(math.ceil(high) + 1, length))
