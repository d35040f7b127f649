"""Captions of scenes. The caption of the target always names its color, its shape and, unless plain, its texture."""

from __future__ import annotations

from fluxexp.data.shapes.scene_layout import Background, SceneLayout, SceneObject
from fluxexp.data.stable_random import StableRandom

_ROWS = ("top", "", "bottom")
_COLUMNS = ("left", "", "right")
_PREPOSITIONS = {"top": "at the", "bottom": "at the", "left": "on the", "right": "on the"}
"""Prepositions of places in the middle of an edge. The center and the corners take 'in the'."""

_FRAMES = (
    "{item}",
    "{item}",
    "{item} on {background}",
    "{item} on {background}",
    "{item} {place}",
    "there is {item} {place}",
    "a picture of {item}",
    "{item} against {background}",
    "{place}, {item}",
    "{item} {place}, on {background}",
)


def target_caption(rng: StableRandom, layout: SceneLayout) -> str:
    """A caption of the target, in a randomly chosen wording."""
    item = describe(layout.target, with_size=rng.chance(0.5))
    frame = rng.pick(_FRAMES)
    where = position(layout)
    place = f"{_PREPOSITIONS.get(where, 'in the')} {where}"
    return frame.format(item=item, background=describe_background(layout.background), place=place)


def scene_caption(layout: SceneLayout) -> str:
    """A caption of the whole scene, with its objects from left to right."""
    objects = sorted((layout.target, *layout.others), key=lambda item: item.x)
    words = [describe(item, with_size=True) for item in objects]
    listing = f"{', '.join(words[:-1])} and {words[-1]}"
    return f"{listing} on {describe_background(layout.background)}"


def describe(item: SceneObject, *, with_size: bool) -> str:
    """An object with its article, for example 'a large striped red star'."""
    words = [item.color, item.shape]
    if item.texture != "plain":
        words.insert(0, item.texture)
    if with_size:
        words.insert(0, item.size)
    return _with_article(" ".join(words))


def describe_background(background: Background) -> str:
    """A background with its article, for example 'a checkered grey background'."""
    return _with_article(f"{background.kind} {background.tone} background")


def position(layout: SceneLayout) -> str:
    """Position of the target on a 3 x 3 grid, for example 'top left', 'right' or 'center'."""
    row = _ROWS[min(int(layout.target.y / layout.height * 3), 2)]
    column = _COLUMNS[min(int(layout.target.x / layout.width * 3), 2)]
    return f"{row} {column}".strip() or "center"


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
