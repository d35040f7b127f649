"""Chooses the content of a scene without drawing it.

Lengths are in units of the scene's short side, so that a scene is the same at any resolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fluxexp.data.shapes.palette import (
    BACKGROUND_KINDS,
    COLORS,
    RADII,
    REGION_KINDS,
    SHAPES,
    SIZES,
    TEXTURES,
    TONES,
    RegionKind,
)
from fluxexp.data.stable_random import StableRandom

GAP = 0.04
"""Smallest distance between the circumscribed circles of two objects."""
EDGE = 0.015
"""Smallest distance between an object's circumscribed circle and the edge of the scene."""
MAX_TRIES = 30
MAX_ROTATIONS = {"circle": 0.0, "ring": 0.0}
"""Largest rotation of a shape in both directions, in radians. `MAX_ROTATION` holds for the other shapes."""
MAX_ROTATION = math.radians(18)


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneObject:
    """An object. (x, y) and `radius` describe its circumscribed circle; `angle` and `texture_angle` are in radians."""

    shape: str
    color: str
    texture: str
    size: str
    x: float
    y: float
    radius: float
    angle: float
    texture_angle: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """A background.

    Checkered and striped backgrounds have a `period`. (x, y) is the center of a glowing background, and the offset of a
    checkered one. `angle`, in radians, is the direction of a shaded or striped background.
    """

    kind: str
    tone: str
    angle: float
    period: float
    x: float
    y: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedRegion:
    """The region around the target that is masked. It exceeds the target's circumscribed circle by at least `margin`.

    `numbers` are four values in [0, 1) that vary its form.
    """

    kind: RegionKind
    margin: float
    numbers: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneLayout:
    """The content of a scene of `width` x `height`. `target` is the masked object; `others` are all other objects."""

    width: float
    height: float
    background: Background
    others: tuple[SceneObject, ...]
    target: SceneObject
    masked_region: MaskedRegion


def lay_out(rng: StableRandom, width: float, height: float) -> SceneLayout:
    """Choose a background and two to four objects of different colors that overlap little or not at all."""
    background = _background(rng, width, height)
    colors = rng.shuffle(tuple(COLORS))
    count = 2 + rng.below(3)
    objects: list[SceneObject] = []
    for color in colors[:count]:
        # If the target is large, the second object is small, so that there is always room for it.
        size = "small" if len(objects) == 1 and objects[0].size == "large" else rng.pick(SIZES)
        item, clearance = _place_object(rng, color, size, objects, width, height)
        if clearance >= GAP or len(objects) < 2:
            objects.append(item)
    return SceneLayout(
        width=width,
        height=height,
        background=background,
        others=tuple(objects[1:]),
        target=objects[0],
        masked_region=_masked_region(rng),
    )


def _background(rng: StableRandom, width: float, height: float) -> Background:
    return Background(
        kind=rng.pick(BACKGROUND_KINDS),
        tone=rng.pick(tuple(TONES)),
        angle=rng.uniform(0, math.pi),
        period=rng.uniform(0.2, 0.32),
        x=rng.uniform(0.2, 0.8) * width,
        y=rng.uniform(0.2, 0.8) * height,
    )


def _masked_region(rng: StableRandom) -> MaskedRegion:
    return MaskedRegion(
        kind=rng.pick(REGION_KINDS),
        margin=rng.uniform(0.025, 0.05),
        numbers=(rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0, 1)),
    )


def _place_object(
    rng: StableRandom, color: str, size: str, placed: list[SceneObject], width: float, height: float
) -> tuple[SceneObject, float]:
    """Place a new object at the first tried position with enough room, else at the tried position with the most room.

    Returns the object and its distance from the nearest other object.
    """
    radius = rng.uniform(*RADII[size])
    x, y, clearance = _find_place(rng, radius, placed, width, height)
    shape = rng.pick(SHAPES)
    turn = MAX_ROTATIONS.get(shape, MAX_ROTATION)
    item = SceneObject(
        shape=shape,
        color=color,
        texture=rng.pick(TEXTURES),
        size=size,
        x=x,
        y=y,
        radius=radius,
        angle=rng.uniform(-turn, turn),
        texture_angle=rng.uniform(0, math.pi),
    )
    return item, clearance


def _find_place(
    rng: StableRandom, radius: float, placed: list[SceneObject], width: float, height: float
) -> tuple[float, float, float]:
    inset = radius + EDGE
    best = (0.0, 0.0, -math.inf)
    for _ in range(MAX_TRIES):
        x, y = rng.uniform(inset, width - inset), rng.uniform(inset, height - inset)
        room = min((math.hypot(x - t.x, y - t.y) - t.radius - radius for t in placed), default=math.inf)
        if room > best[2]:
            best = (x, y, room)
        if room >= GAP:
            break
    return best
