"""What batches need besides noise, computed once for all tasks of a sample, and prompts encoded ahead."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from fluxexp.models.base import Model, ModelInput
from fluxexp.worker.prefetch import PreparedSample

_KEPT = 128
"""Conditionings kept on the device: some ten MiB each for FLUX.1-Fill at 1024 x 1024."""


class Conditioner:
    """Conditionings by sample. Those of samples that have several tasks are kept with the model, for any run's.

    A task that is tried again by itself, after its batch failed, is conditioned again where its sample has no other.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._kept = model.conditionings

    def __call__(self, batch: Sequence[PreparedSample]) -> list[Any]:
        """Conditioning of each item, in their order."""
        keys = [_key(item) for item in batch]
        missing = {key: item for key, item in zip(keys, batch, strict=True) if key not in self._kept}
        found = dict(zip(missing, self.afresh(list(missing.values())), strict=True))
        result = [found[key] if key in found else self._kept[key] for key in keys]
        for key, item, conditioning in zip(keys, batch, result, strict=True):
            if _may_come_again(item):
                self._kept[key] = conditioning
                self._kept.move_to_end(key)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return result

    def afresh(self, batch: Sequence[PreparedSample]) -> list[Any]:
        """The same, but nothing is looked up nor kept."""
        return self._model.condition([_model_input(item) for item in batch], _length(batch[0])) if batch else []

    def encode_ahead(self, items: Sequence[PreparedSample], like: PreparedSample) -> None:
        """Have the prompts of `items` encoded that are to be as long as that of `like`."""
        length = _length(like)
        prompts = [item.sample.prompt for item in items if _length(item) == length]
        self._model.encode_prompts(prompts, length)

    def encoders_visit(self, batch: Sequence[PreparedSample]) -> bool:
        """Whether encoders come to the device for `batch`."""
        return self._model.encoders_visit([item.sample.prompt for item in batch], _length(batch[0]))


def _length(item: PreparedSample) -> int | None:
    return item.task.point.max_sequence_length


def _model_input(item: PreparedSample) -> ModelInput:
    placed = item.placed
    return ModelInput(
        prompt=item.sample.prompt, height=placed.height, width=placed.width, image=placed.image, mask=placed.mask
    )


def _key(item: PreparedSample) -> Hashable:
    """All that conditioning depends on, so that what is kept can serve any run on this model."""
    placed, sample = item.placed, item.sample
    return (item.order.source, sample.key, sample.prompt, placed.height, placed.width, _length(item))


def _may_come_again(item: PreparedSample) -> bool:
    """Whether a sample has several tasks: variants, or points of a sweep."""
    return not item.order.is_alone or item.order.config.sampling.images_per_sample > 1
