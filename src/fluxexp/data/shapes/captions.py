"""Says what is in a scene. The target's caption always names its colour and shape, and its texture if it has one."""

from __future__ import annotations

from fluxexp.data.shapes.scene_layout import Backdrop, SceneLayout, Thing
from fluxexp.data.stable_random import StableRandom

_ROWS = ("top", "", "bottom")
_COLUMNS = ("left", "", "right")
_PREPOSITIONS = {"top": "at the", "bottom": "at the", "left": "on the", "right": "on the"}
"""Of places in the middle of an edge; the others are 'in the' center or corner."""

_FRAMES = (
    "{thing}",
    "{thing}",
    "{thing} on {background}",
    "{thing} on {background}",
    "{thing} {place}",
    "there is {thing} {place}",
    "a picture of {thing}",
    "{thing} against {background}",
    "{place}, {thing}",
    "{thing} {place}, on {background}",
)


def target_caption(dice: StableRandom, layout: SceneLayout) -> str:
    """One of many ways to say what is behind the mask."""
    thing = describe(layout.target, with_size=dice.chance(0.5))
    frame = dice.pick(_FRAMES)
    where = position(layout)
    place = f"{_PREPOSITIONS.get(where, 'in the')} {where}"
    return frame.format(thing=thing, background=background(layout.backdrop), place=place)


def scene_caption(layout: SceneLayout) -> str:
    """The whole scene, its objects from left to right."""
    things = sorted((layout.target, *layout.others), key=lambda thing: thing.x)
    words = [describe(thing, with_size=True) for thing in things]
    listing = f"{', '.join(words[:-1])} and {words[-1]}"
    return f"{listing} on {background(layout.backdrop)}"


def describe(thing: Thing, *, with_size: bool) -> str:
    """An object with its article: 'a large striped red star'."""
    words = [thing.color, thing.shape]
    if thing.texture != "plain":
        words.insert(0, thing.texture)
    if with_size:
        words.insert(0, thing.size)
    return _with_article(" ".join(words))


def background(backdrop: Backdrop) -> str:
    """A background with its article: 'a checkered grey background'."""
    return _with_article(f"{backdrop.kind} {backdrop.tone} background")


def position(layout: SceneLayout) -> str:
    """Where in the scene the target is, in thirds: 'top left', 'right', 'center'."""
    row = _ROWS[min(int(layout.target.y / layout.height * 3), 2)]
    column = _COLUMNS[min(int(layout.target.x / layout.width * 3), 2)]
    return f"{row} {column}".strip() or "center"


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
