"""The training set: scenes drawn by several processes, with more masks and more captions than `dataset=shapes` has."""

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
from fluxexp.data.stable_random import StableRandom
from tools.train_tiny_fill.vocabulary import TEXT_TOKENS, clip_tokenizer, t5_tokenizer

FILL_CAPTIONS = 4
DEV_CAPTIONS = 3
_CHUNK = 256
_OTHER_MASK_EVERY = 8


@dataclass(frozen=True, slots=True)
class Scenes:
    """N scenes. Tokens are those of the captions for filling, then of those for text to image."""

    truths: NDArray[np.uint8]
    """(N, size, size, 3)."""
    masks: NDArray[np.uint8]
    """(N, size * size / 8): bits, 1 where to paint."""
    clip_tokens: NDArray[np.int16]
    """(N, FILL_CAPTIONS + DEV_CAPTIONS, TEXT_TOKENS)."""
    t5_tokens: NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.truths)


class Drawing:
    """The first `count` scenes of series `seed`, drawn in the background from now on."""

    def __init__(self, seed: int, count: int, size: int, workers: int) -> None:
        self._pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker)
        chunks = [(seed, first, min(first + _CHUNK, count), size) for first in range(0, count, _CHUNK)]
        self._parts = [self._pool.submit(_draw_chunk, *chunk) for chunk in chunks]

    def first(self, count: int) -> Scenes:
        """The first `count` scenes or a few more, when they are drawn."""
        parts = [part.result() for part in self._parts[: -(-count // _CHUNK)]]
        return Scenes(*(np.concatenate([getattr(part, name) for part in parts]) for name in Scenes.__slots__))

    def all(self) -> Scenes:
        """All scenes."""
        return self.first(len(self._parts) * _CHUNK)

    def close(self) -> None:
        """Let go of the scenes, and end the processes that draw them."""
        self._parts = []
        self._pool.shutdown(cancel_futures=True)


def caption_variants(seed: int, index: int, scene: Scene, other_mask: bool) -> list[str]:
    """What a scene is called: FILL_CAPTIONS about what is masked, then DEV_CAPTIONS, mostly about all of it."""
    dice = StableRandom("captions", seed, index)
    layout = lay_out(StableRandom("shapes", seed, index), 1.0, 1.0)
    whole = scene.traits["scene"]
    if other_mask:
        filling = [whole] * FILL_CAPTIONS
    else:
        filling = [scene.caption, target_caption(dice, layout), target_caption(dice, layout)]
        filling.append(whole if dice.chance(0.5) else _brief(dice, scene))
    painting = [whole, whole, target_caption(dice, layout)]
    return [_vary(dice, caption) for caption in filling + painting]


def _brief(dice: StableRandom, scene: Scene) -> str:
    """Few words: 'red star', 'star', 'something red'."""
    color, shape, texture = (scene.traits[name] for name in ("color", "shape", "texture"))
    full = f"{color} {shape}" if texture == "plain" else f"{texture} {color} {shape}"
    return dice.pick((full, full, f"{color} {shape}", shape, f"a {shape}", color))


def _vary(dice: StableRandom, caption: str) -> str:
    """As people type: 'gray', a capital, a full stop."""
    if dice.chance(0.3):
        caption = caption.replace("grey", "gray")
    if dice.chance(0.15):
        caption = caption[0].upper() + caption[1:]
    return caption + "." if dice.chance(0.15) else caption


def _other_mask(seed: int, index: int, size: int) -> NDArray[np.uint8]:
    """A mask that knows nothing of the scene, sometimes all of it."""
    dice = StableRandom("other mask", seed, index)
    if dice.chance(0.1):
        return np.full((size, size), 255, np.uint8)
    kind: Any = dice.pick(KINDS)
    return np.array(draw_mask(kind, (size, size), f"{seed}-{index}"))


_tokenizers: list[Any] = []


def _start_worker() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _tokenizers.extend((clip_tokenizer(), t5_tokenizer()))


def _draw_chunk(seed: int, first: int, last: int, size: int) -> Scenes:
    truths, masks, captions = [], [], []
    for index in range(first, last):
        scene = draw_scene(seed, index, size, size)
        other = index % _OTHER_MASK_EVERY == 0
        mask = _other_mask(seed, index, size) if other else scene.mask
        truths.append(scene.truth)
        masks.append(np.packbits(mask > 0))
        captions += caption_variants(seed, index, scene, other)
    shape = (last - first, FILL_CAPTIONS + DEV_CAPTIONS, TEXT_TOKENS)
    tokens = [tokenize(tokenizer, captions).reshape(shape).astype(np.int16) for tokenizer in _tokenizers]
    return Scenes(np.stack(truths), np.stack(masks), *tokens)


def tokenize(tokenizer: Any, captions: list[str]) -> NDArray[np.int64]:
    """As the pipelines do: (captions, TEXT_TOKENS)."""
    encoded = tokenizer(captions, padding="max_length", max_length=TEXT_TOKENS, truncation=True, return_tensors="np")
    ids: NDArray[np.int64] = encoded.input_ids
    return ids
