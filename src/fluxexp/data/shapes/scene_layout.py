"""Decides what is in a scene, without drawing it: a pure function of seed, index and aspect.

Lengths are in units of the scene's short side, so that a scene is the same at any resolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fluxexp.data.shapes.palette import (
    BACKDROPS,
    COLORS,
    HOLES,
    RADII,
    SHAPES,
    SIZES,
    TEXTURES,
    TONES,
    HoleKind,
)
from fluxexp.data.stable_random import StableRandom

GAP = 0.04
"""Least space between the circumscribed circles of two objects."""
EDGE = 0.015
"""Least space between an object and the edge of the scene."""
TRIES = 30
TURNS = {"circle": 0.0, "ring": 0.0}
"""Largest rotation of a shape, in radians, either way; of those not named `TURN`."""
TURN = math.radians(18)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """An object: what it is, the centre of its circumscribed circle, and how it and its texture are turned."""

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
class Backdrop:
    """A background. `period` is of a checkered or striped one; (x, y) is the centre of a glowing one."""

    kind: str
    tone: str
    angle: float
    period: float
    x: float
    y: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedRegion:
    """What is masked: a region around the target, at least `margin` larger than its circumscribed circle.

    `numbers` are four values in [0, 1) that vary the form.
    """

    kind: HoleKind
    margin: float
    numbers: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneLayout:
    """A scene before it is drawn, `width` by `height`; the target, the object that is masked, is not in `others`."""

    width: float
    height: float
    backdrop: Backdrop
    others: tuple[Thing, ...]
    target: Thing
    masked_region: MaskedRegion


def lay_out(dice: StableRandom, width: float, height: float) -> SceneLayout:
    """Two to four objects of different colours, little or not overlapping, on a background."""
    backdrop = _backdrop(dice, width, height)
    colors = dice.shuffle(tuple(COLORS))
    count = 2 + dice.below(3)
    things: list[Thing] = []
    for color in colors[:count]:
        # With small objects first beside the target there is always room for a second one.
        size = "small" if len(things) == 1 and things[0].size == "large" else dice.pick(SIZES)
        thing, clearance = _place_thing(dice, color, size, things, width, height)
        if clearance >= GAP or len(things) < 2:
            things.append(thing)
    return SceneLayout(
        width=width,
        height=height,
        backdrop=backdrop,
        others=tuple(things[1:]),
        target=things[0],
        masked_region=_masked_region(dice),
    )


def _backdrop(dice: StableRandom, width: float, height: float) -> Backdrop:
    return Backdrop(
        kind=dice.pick(BACKDROPS),
        tone=dice.pick(tuple(TONES)),
        angle=dice.uniform(0, math.pi),
        period=dice.uniform(0.2, 0.32),
        x=dice.uniform(0.2, 0.8) * width,
        y=dice.uniform(0.2, 0.8) * height,
    )


def _masked_region(dice: StableRandom) -> MaskedRegion:
    return MaskedRegion(
        kind=dice.pick(HOLES),
        margin=dice.uniform(0.025, 0.05),
        numbers=(dice.uniform(0, 1), dice.uniform(0, 1), dice.uniform(0, 1), dice.uniform(0, 1)),
    )


def _place_thing(
    dice: StableRandom, color: str, size: str, placed: list[Thing], width: float, height: float
) -> tuple[Thing, float]:
    """A new object at the first place with room, else at the roomiest that was tried; and the room it has."""
    radius = dice.uniform(*RADII[size])
    x, y, clearance = _find_place(dice, radius, placed, width, height)
    shape = dice.pick(SHAPES)
    turn = TURNS.get(shape, TURN)
    thing = Thing(
        shape=shape,
        color=color,
        texture=dice.pick(TEXTURES),
        size=size,
        x=x,
        y=y,
        radius=radius,
        angle=dice.uniform(-turn, turn),
        texture_angle=dice.uniform(0, math.pi),
    )
    return thing, clearance


def _find_place(
    dice: StableRandom, radius: float, placed: list[Thing], width: float, height: float
) -> tuple[float, float, float]:
    inset = radius + EDGE
    best = (0.0, 0.0, -math.inf)
    for _ in range(TRIES):
        x, y = dice.uniform(inset, width - inset), dice.uniform(inset, height - inset)
        room = min((math.hypot(x - t.x, y - t.y) - t.radius - radius for t in placed), default=math.inf)
        if room > best[2]:
            best = (x, y, room)
        if room >= GAP:
            break
    return best
