"""Generates the training set in several processes. It has more kinds of masks and captions than `dataset=shapes`."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxexp.data.masks import KINDS, draw_mask
from fluxexp.data.shapes.captions import target_caption
from fluxexp.data.shapes.scene import Scene, draw_scene
from fluxexp.data.shapes.scene_layout import lay_out
from fluxexp.data.shapes.styles import Style
from fluxexp.data.stable_random import StableRandom
from tools.train_tiny_fill.vocabulary import TEXT_TOKENS, clip_tokenizer, t5_tokenizer

FILL_CAPTIONS = 4
DEV_CAPTIONS = 3
_CHUNK = 256
"""Scenes per task of a worker process."""
_OTHER_MASK_EVERY = 8
"""Every eighth scene has a mask that does not depend on its objects."""


@dataclass(frozen=True, slots=True)
class Scenes:
    """N scenes. Their captions are FILL_CAPTIONS captions for filling, then DEV_CAPTIONS captions for text to image."""

    truths: NDArray[np.uint8]
    """Complete scenes, (N, size, size, 3)."""
    masks: NDArray[np.uint8]
    """Packed bits, (N, size * size / 8); 1 in the masked region."""
    clip_tokens: NDArray[np.int16]
    """(N, FILL_CAPTIONS + DEV_CAPTIONS, TEXT_TOKENS)."""
    t5_tokens: NDArray[np.int16]
    """(N, FILL_CAPTIONS + DEV_CAPTIONS, TEXT_TOKENS)."""

    def __len__(self) -> int:
        return len(self.truths)


class Drawing:
    """Generates the first `count` scenes of series `seed` in the background.

    With a style, the target of each scene is drawn in it, and no mask is independent of the scene.
    """

    def __init__(self, seed: int, count: int, size: int, workers: int, style: Style | None = None) -> None:
        self._pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker)
        chunks = [(seed, first, min(first + _CHUNK, count), size, style) for first in range(0, count, _CHUNK)]
        self._parts = [self._pool.submit(_draw_chunk, *chunk) for chunk in chunks]

    def first(self, count: int) -> Scenes:
        """Wait for the first `count` scenes, and return them. Rounds `count` up to whole chunks."""
        parts = [part.result() for part in self._parts[: -(-count // _CHUNK)]]
        return Scenes(*(np.concatenate([getattr(part, name) for part in parts]) for name in Scenes.__slots__))

    def all(self) -> Scenes:
        """Wait for all scenes, and return them."""
        return self.first(len(self._parts) * _CHUNK)

    def close(self) -> None:
        """Free the scenes, and end the worker processes."""
        self._parts = []
        self._pool.shutdown(cancel_futures=True)


def caption_variants(seed: int, index: int, scene: Scene, other_mask: bool) -> list[str]:
    """Captions of a scene: FILL_CAPTIONS about the masked object, then DEV_CAPTIONS, mostly about the whole scene.

    With `other_mask`, the mask does not depend on the objects, so the captions for filling are about the whole scene.
    """
    rng = StableRandom("captions", seed, index)
    layout = lay_out(StableRandom("shapes", seed, index), 1.0, 1.0)
    whole = scene.traits["scene"]
    if other_mask:
        filling = [whole] * FILL_CAPTIONS
    else:
        filling = [scene.caption, target_caption(rng, layout), target_caption(rng, layout)]
        filling.append(whole if rng.chance(0.5) else _brief(rng, scene))
    painting = [whole, whole, target_caption(rng, layout)]
    return [_vary(rng, caption) for caption in filling + painting]


def _brief(rng: StableRandom, scene: Scene) -> str:
    """A caption of a few words, for example 'red star', 'star' or 'red'."""
    color, shape, texture = (scene.traits[name] for name in ("color", "shape", "texture"))
    full = f"{color} {shape}" if texture == "plain" else f"{texture} {color} {shape}"
    return rng.pick((full, full, f"{color} {shape}", shape, f"a {shape}", color))


def _vary(rng: StableRandom, caption: str) -> str:
    """Vary a caption as users type it: 'gray' for 'grey', a capital first letter, a period at the end."""
    if rng.chance(0.3):
        caption = caption.replace("grey", "gray")
    if rng.chance(0.15):
        caption = caption[0].upper() + caption[1:]
    return caption + "." if rng.chance(0.15) else caption


def _other_mask(seed: int, index: int, size: int) -> NDArray[np.uint8]:
    """A random mask that does not depend on the scene. One in ten covers everything."""
    rng = StableRandom("other mask", seed, index)
    if rng.chance(0.1):
        return np.full((size, size), 255, np.uint8)
    kind: Any = rng.pick(KINDS)
    return np.array(draw_mask(kind, (size, size), f"{seed}-{index}"))


_tokenizers: list[Any] = []


def _start_worker() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _tokenizers.extend((clip_tokenizer(), t5_tokenizer()))


def _draw_chunk(seed: int, first: int, last: int, size: int, style: Style | None) -> Scenes:
    truths, masks, captions = [], [], []
    for index in range(first, last):
        scene = draw_scene(seed, index, size, size, style)
        other = style is None and index % _OTHER_MASK_EVERY == 0
        mask = _other_mask(seed, index, size) if other else scene.mask
        truths.append(scene.truth)
        masks.append(np.packbits(mask > 0))
        captions += caption_variants(seed, index, scene, other)
    shape = (last - first, FILL_CAPTIONS + DEV_CAPTIONS, TEXT_TOKENS)
    tokens = [tokenize(tokenizer, captions).reshape(shape).astype(np.int16) for tokenizer in _tokenizers]
    return Scenes(np.stack(truths), np.stack(masks), *tokens)


def tokenize(tokenizer: Any, captions: list[str]) -> NDArray[np.int64]:
    """Tokenize like the pipelines: int64 (captions, TEXT_TOKENS)."""
    encoded = tokenizer(captions, padding="max_length", max_length=TEXT_TOKENS, truncation=True, return_tensors="np")
    ids: NDArray[np.int64] = encoded.input_ids
    return ids
