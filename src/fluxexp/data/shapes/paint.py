"""Draws the parts of a layout as pixels: its background, its objects and the hole."""

from __future__ import annotations

import math

import numpy as np

from fluxexp.arrays import Float64Array, ImageArray
from fluxexp.data.shapes.distance import DISTANCES, capsule
from fluxexp.data.shapes.palette import COLORS, INKS, RGB, TONE_STEP, TONES
from fluxexp.data.shapes.raster import AlphaArray, alpha, coverage, dots, mix, pixel_grid, stripes
from fluxexp.data.shapes.scene_layout import Backdrop, MaskedRegion, SceneLayout, Thing
from fluxexp.data.stable_random import StableRandom

STRIPE_PERIOD, STRIPE_DUTY = 0.075, 0.38
DOT_PERIOD, DOT_RADIUS = 0.08, 0.026
RIM = 0.012
"""Width of the plain rim of a textured object: it keeps the outline of small ones clear."""
NOISE_CELLS = 5
"""Cells of the coarse octave of a cloudy background along the short side."""


def paint_backdrop(layout: SceneLayout, dice: StableRandom, height: int, width: int) -> ImageArray:
    """The background as uint8 of shape (height, width, 3)."""
    share = _backdrop_share(layout, dice, height, width)
    red, green, blue = TONES[layout.backdrop.tone]
    dark = (red - TONE_STEP, green - TONE_STEP, blue - TONE_STEP)
    light = (red + TONE_STEP, green + TONE_STEP, blue + TONE_STEP)
    return mix(dark, light, np.broadcast_to(alpha(share), (height, width)))


def paint_thing(canvas: ImageArray, thing: Thing) -> tuple[slice, slice, AlphaArray]:
    """Draw an object onto `canvas`, in place; its window (rows, columns) and its alpha there, of shape (h, w)."""
    height, width = canvas.shape[:2]
    pixel = 1 / min(height, width)
    rows, columns = _window(thing.y, thing.radius, height, pixel), _window(thing.x, thing.radius, width, pixel)
    x, y = pixel_grid(height, width)
    u, v = _turn(x[:, columns] - thing.x, y[rows] - thing.y, thing.angle)
    distance = DISTANCES[thing.shape](u / thing.radius, v / thing.radius) * thing.radius
    shown = alpha(coverage(distance, pixel))
    paint = _texture(thing, u, v, coverage(distance + RIM, pixel), pixel)
    canvas[rows, columns] = mix(canvas[rows, columns], paint, shown)
    return rows, columns, shown


def paint_masked_region(layout: SceneLayout, height: int, width: int) -> ImageArray:
    """The hole around the target as uint8 of shape (height, width): 0 or 255."""
    x, y = pixel_grid(height, width)
    masked_region, target = layout.masked_region, layout.target
    distance = _hole_distance(masked_region, target.radius + masked_region.margin, x - target.x, y - target.y)
    return np.where(distance < 1e-9, np.uint8(255), np.uint8(0))


def _backdrop_share(layout: SceneLayout, dice: StableRandom, height: int, width: int) -> Float64Array:
    """How light the background is: values in [0, 1] that broadcast to (height, width)."""
    x, y = pixel_grid(height, width)
    pixel = 1 / min(height, width)
    backdrop = layout.backdrop
    match backdrop.kind:
        case "shaded":
            u, _ = _turn(x - layout.width / 2, y - layout.height / 2, backdrop.angle)
            return u / math.hypot(layout.width, layout.height) + 0.5
        case "glowing":
            return 1 - np.hypot(x - backdrop.x, y - backdrop.y) / (0.8 * max(layout.width, layout.height))
        case "checkered":
            return _checker(backdrop, x, y, pixel)
        case "striped":
            u, _ = _turn(x, y, backdrop.angle)
            return stripes(u, backdrop.period * 0.7, 0.5, pixel)
        case "cloudy":
            return 0.65 * _noise(dice, x, y, NOISE_CELLS) + 0.35 * _noise(dice, x, y, 3 * NOISE_CELLS)
        case _:
            return np.full((1, 1), 0.5)


def _checker(backdrop: Backdrop, x: Float64Array, y: Float64Array, pixel: float) -> Float64Array:
    across = stripes(x - backdrop.x, backdrop.period, 0.5, pixel)
    along = stripes(y - backdrop.y, backdrop.period, 0.5, pixel)
    return across * (1 - along) + along * (1 - across)


def _noise(dice: StableRandom, x: Float64Array, y: Float64Array, cells: int) -> Float64Array:
    """Value noise: random values on a lattice of `cells` per unit, smoothly interpolated."""
    columns, rows = int(x[0, -1] * cells) + 2, int(y[-1, 0] * cells) + 2
    lattice = np.array([[dice.uniform(0, 1) for _ in range(columns)] for _ in range(rows)])
    column, row = (x[0] * cells).astype(np.intp), (y[:, 0] * cells).astype(np.intp)
    across, along = _smooth(x[0] * cells - column), _smooth(y[:, 0] * cells - row)[:, None]
    lines = lattice[:, column] * (1 - across) + lattice[:, column + 1] * across
    return lines[row] * (1 - along) + lines[row + 1] * along


def _smooth(share: Float64Array) -> Float64Array:
    return share * share * (3 - 2 * share)


def _texture(thing: Thing, u: Float64Array, v: Float64Array, within: Float64Array, pixel: float) -> ImageArray | RGB:
    """The object's own colours, as if it filled its window; `within` is where its second colour may show."""
    if thing.texture == "plain":
        return COLORS[thing.color]
    s, t = _turn(u, v, thing.texture_angle)
    if thing.texture == "striped":
        ink = stripes(s, STRIPE_PERIOD, STRIPE_DUTY, pixel)
    else:
        ink = dots(s, t, DOT_PERIOD, DOT_RADIUS, pixel)
    return mix(COLORS[thing.color], INKS[thing.color], alpha(ink * within))


def _hole_distance(masked_region: MaskedRegion, reach: float, x: Float64Array, y: Float64Array) -> Float64Array:
    """Negative inside the hole, relative to the target's centre. The disc of radius `reach` is inside any of them."""
    a, b, c, d = masked_region.numbers
    slack = 0.06
    match masked_region.kind:
        case "box":
            across = np.maximum(x - reach - slack * a, -x - reach - slack * b)
            return np.maximum(across, np.maximum(y - reach - slack * c, -y - reach - slack * d))
        case "ellipse":
            u, v = _turn(x, y, a * math.pi)
            return np.hypot(u / (reach + slack * b), v / (reach + 2 * slack * c)) - 1
        case "blob":
            angle = np.arctan2(y, x)
            waves = np.sin(2 * angle + 7 * a) + np.sin(3 * angle + 7 * b) + 0.7 * np.sin(5 * angle + 7 * c)
            return np.hypot(x, y) - reach - 0.025 * (2.7 + waves) * (0.5 + d)
        case "scribble":
            return _scribble(masked_region, reach, x, y)


def _scribble(masked_region: MaskedRegion, reach: float, x: Float64Array, y: Float64Array) -> Float64Array:
    """Five strokes of a thick pen, side by side, each at least as long as the disc they cover is there."""
    angle, *ends = masked_region.numbers
    u, v = _turn(x, y, angle * math.pi)
    pen = reach * 0.36
    distance = np.full(np.broadcast_shapes(x.shape, y.shape), np.inf)
    for stroke in range(-2, 3):
        offset = stroke * reach * 0.4
        half = math.sqrt(reach * reach - offset * offset)
        start, end = (reach * 0.3 * ends[(stroke + shift) % 3] for shift in (0, 1))
        line = capsule(u, v, (-half - start + pen * 0.5, offset), (half + end - pen * 0.5, offset), pen)
        distance = np.minimum(distance, line)
    return distance


def _turn(x: Float64Array, y: Float64Array, angle: float) -> tuple[Float64Array, Float64Array]:
    """Coordinates in a frame that is turned by `angle`."""
    cos, sin = math.cos(angle), math.sin(angle)
    return cos * x + sin * y, cos * y - sin * x


def _window(centre: float, radius: float, length: int, pixel: float) -> slice:
    low, high = (centre - radius) / pixel, (centre + radius) / pixel
    return slice(max(math.floor(low) - 1, 0), min(math.ceil(high) + 1, length))
