"""Conditioning of batches, computed once for all tasks of a sample, and encoding of prompts ahead of their batch."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from fluxexp.data import Placed
from fluxexp.errors import SampleError
from fluxexp.models.base import CutTexts, Model, ModelInput, Prompt
from fluxexp.records import Point, Sample
from fluxexp.worker.prefetch import PreparedSample
from fluxexp.worker.prompts import negative_prompt_of, prompt_of

_MAX_CONDITIONINGS = 128
"""Number of conditionings cached on the device: about 10 MiB each for FLUX.1-Fill at 1024 x 1024."""


class Conditioner:
    """Conditions batches. The model caches the conditioning of samples that have several tasks, for all its runs.

    If a batch failed and a task is retried alone, a sample without other tasks is conditioned again.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._cache = model.conditionings

    def __call__(self, batch: Sequence[PreparedSample]) -> list[Any]:
        """The conditioning of each item of a batch, in order."""
        keys = [self._key(item) for item in batch]
        missing = {key: item for key, item in zip(keys, batch, strict=True) if key not in self._cache}
        found = dict(zip(missing, self.condition_again(list(missing.values())), strict=True))
        result = [found[key] if key in found else self._cache[key] for key in keys]
        for key, item, conditioning in zip(keys, batch, result, strict=True):
            if _has_several_tasks(item):
                self._cache[key] = conditioning
                self._cache.move_to_end(key)
        while len(self._cache) > _MAX_CONDITIONINGS:
            self._cache.popitem(last=False)
        return result

    def _key(self, item: PreparedSample) -> Hashable:
        """All that the conditioning depends on, so that it can be used for any run of this model."""
        placed, sample, lora = item.placed, item.sample, item.task.point.lora
        own = (lora,) if lora and self._model.changes_text(lora) else ()
        texts = (item.prompt if item.task.point.redux.reads_prompt else None, item.negative_prompt)
        return (item.order.source, sample.key, texts, placed.height, placed.width, _length(item), *own)

    def condition_again(self, batch: Sequence[PreparedSample]) -> list[Any]:
        """Condition a batch without the cache."""
        inputs = [model_input(item.sample, item.placed, item.task.point) for item in batch]
        return self._model.condition(inputs, _length(batch[0])) if batch else []

    def cut_tokens(self, batch: Sequence[PreparedSample]) -> list[CutTexts]:
        """The tokens of each image's prompts that the text encoders do not read. None: they read no prompt."""
        length = _length(batch[0])
        prompts = self._model.cut_tokens([item.prompt for item in batch], length)
        negative = [item.negative_prompt for item in batch if item.negative_prompt is not None]
        negatives = iter(self._model.cut_tokens(negative, length))
        return [
            CutTexts(
                prompt if item.task.point.redux.reads_prompt else None,
                None if item.negative_prompt is None else next(negatives),
            )
            for item, prompt in zip(batch, prompts, strict=True)
        ]

    def encode_ahead(self, items: Sequence[PreparedSample], like: PreparedSample) -> None:
        """Encode the prompts of those `items` that have the same maximum sequence length as `like`."""
        length = _length(like)
        alike = [item for item in items if _length(item) == length and not self._changes_text(item)]
        self._model.encode_prompts(_prompts(alike), length)

    def _changes_text(self, item: PreparedSample) -> bool:
        """Whether the LoRAs of an item change CLIP. A LoRA that cannot be read fails when its batch is made."""
        try:
            return self._model.changes_text(item.task.point.lora)
        except SampleError:
            return True

    def streams_text_encoders(self, batch: Sequence[PreparedSample]) -> bool:
        """Whether text encoders must be moved to the device for `batch`."""
        return self._model.streams_text_encoders(_prompts(batch), _length(batch[0]))


def _prompts(items: Iterable[PreparedSample]) -> list[Prompt]:
    """All texts that are encoded for `items`."""
    read = [(item.prompt if item.task.point.redux.reads_prompt else None, item.negative_prompt) for item in items]
    return [text for texts in read for text in texts if text is not None]


def _length(item: PreparedSample) -> int | None:
    return item.task.point.max_sequence_length


def model_input(sample: Sample, placed: Placed, point: Point) -> ModelInput:
    """What a model sees of `sample` at `point`. `placed` is the sample at its working size."""
    return ModelInput(
        prompt=prompt_of(sample, point),
        negative_prompt=negative_prompt_of(sample, point),
        height=placed.height,
        width=placed.width,
        image=placed.image,
        mask=placed.mask,
        control_image=placed.control_image,
        references=placed.references,
        reads_prompt=point.redux.reads_prompt,
        lora=point.lora,
    )


def _has_several_tasks(item: PreparedSample) -> bool:
    """Whether the sample may have several tasks: several images, or points of a sweep."""
    return not item.order.is_alone or item.order.config.sampling.images_per_sample > 1
