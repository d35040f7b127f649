"""The recipe from the libraries' guides: one `FluxFillPipeline` per process, with its part of the data in batches.

Each image is saved before the next batch starts. `recipe+compile` compiles the blocks and, on a GPU, uses cuDNN
attention, which is the fastest configuration in diffusers' documentation. `recipe+cache-dit` caches steps
(approximate).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from diffusers import FluxFillPipeline

from fillspeed.cases import Case
from fillspeed.engine import StretchResult
from fillspeed.step_clock import StepClock
from fluxexp.config.model_layouts import FLUX_FILL
from fluxexp.config.model_paths import model_directory
from fluxexp.models.loading.random_weights import random_pipeline
from fluxexp.records import Sample
from fluxexp.telemetry.events import now_s


class Recipe:
    """The pipeline and its loop over batches.

    `kind` is `recipe`, `recipe+compile` or `recipe+cache-dit`.
    """

    def __init__(self, kind: str, is_full_size: bool, device: torch.device) -> None:
        self.device = device
        self._state = PartialState(cpu=device.type == "cpu")
        if device.type == "cpu":
            torch.set_num_threads(1)  # like fluxexp, so that both use the same number of cores
        self.pipeline = _load(is_full_size, device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.notes: list[str] = []
        self._clock = StepClock(self.pipeline.transformer, device)
        if kind == "recipe+compile":
            self._compile()
        if kind == "recipe+cache-dit":
            self._cache()

    def make(self, samples: Sequence[Sample], number: int, case: Case, batch: int, directory: Path) -> StretchResult:
        """Make and save the images of this process's part of the first `number` samples."""
        made = StretchResult([])
        with self._state.split_between_processes(list(samples[:number])) as own:
            for group in _batches(own, batch):
                images = self._images(group, case)
                made.ends_s.append(now_s())
                for sample, image in zip(group, images, strict=True):
                    image.save(directory / f"{sample.key}.png")
                made.batches.append(len(group))
                made.step_s += self._clock.take()
        return made

    def _images(self, samples: Sequence[Sample], case: Case) -> list[Any]:
        assert samples[0].image is not None
        images: list[Any] = self.pipeline(
            prompt=[sample.prompt for sample in samples],
            image=[sample.image for sample in samples],
            mask_image=[sample.mask for sample in samples],
            height=samples[0].image.height,
            width=samples[0].image.width,
            num_inference_steps=case.steps,
            guidance_scale=case.guidance,
            max_sequence_length=self.pipeline.tokenizer_2.model_max_length,
            generator=[torch.Generator("cpu").manual_seed(index) for index, _ in enumerate(samples)],
        ).images
        return images

    def _compile(self) -> None:
        if self.device.type == "cuda":
            self.pipeline.transformer.set_attention_backend("_native_cudnn")
            self.notes.append("_native_cudnn")
        self.pipeline.transformer.compile_repeated_blocks(fullgraph=True)
        self.notes.append("compile_repeated_blocks")

    def _cache(self) -> None:
        import cache_dit  # type: ignore[import-not-found,unused-ignore]

        cache_dit.enable_cache(self.pipeline)
        self.notes.append("cache_dit.enable_cache")


def _load(is_full_size: bool, device: torch.device) -> Any:
    if is_full_size:
        return random_pipeline(FLUX_FILL, device, torch.bfloat16)
    directory = model_directory("embedded:tiny_fill")
    return FluxFillPipeline.from_pretrained(directory, dtype=torch.float32).to(device)


def _batches(samples: Sequence[Sample], batch: int) -> Iterator[list[Sample]]:
    """Groups of adjacent samples of the same size, at most `batch` per group."""
    group: list[Sample] = []
    for sample in samples:
        if group and (len(group) == batch or _size(group[0]) != _size(sample)):
            yield group
            group = []
        group.append(sample)
    if group:
        yield group


def _size(sample: Sample) -> tuple[int, int]:
    assert sample.image is not None
    return sample.image.size
