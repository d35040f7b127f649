"""The recipe from the libraries' guides: one pipeline of diffusers per process, with its part of the data in batches.

Each image is saved before the next batch starts. `recipe+compile` compiles the blocks and, on a GPU, uses cuDNN
attention, which is the fastest configuration in diffusers' documentation. `recipe+cache-dit` caches steps
(approximate).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import PartialState

from fluxexp.config.controlnet_files import layout_config
from fluxexp.config.model_layouts import LAYOUTS
from fluxexp.config.model_paths import model_directory
from fluxexp.models.loading.picture_encoders import draw_redux, redux_without_weights
from fluxexp.models.loading.random_weights import random_pipeline
from fluxexp.records import Sample
from fluxexp.telemetry.events import now_s
from imagespeed.cases import Case
from imagespeed.engine import StretchResult
from imagespeed.models import NEGATIVE_PROMPT, TRUE_CFG_SCALE, BenchmarkModel
from imagespeed.step_clock import StepClock


class Recipe:
    """The pipeline and its loop over batches.

    `kind` is `recipe`, `recipe+compile` or `recipe+cache-dit`.
    """

    def __init__(self, kind: str, model: BenchmarkModel, is_full_size: bool, device: torch.device) -> None:
        self.device = device
        self._state = PartialState(cpu=device.type == "cpu")
        if device.type == "cpu":
            torch.set_num_threads(1)  # like fluxexp, so that both use the same number of cores
        self.pipeline = _load(model, is_full_size, device)
        self.pipeline.set_progress_bar_config(disable=True)
        self._prior = _load_prior(self.pipeline, model, is_full_size, device) if model.family.has_redux else None
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
                made.step_s += self._clock.take(case.steps_run)
        return made

    def _images(self, samples: Sequence[Sample], case: Case) -> list[Any]:
        assert samples[0].size is not None
        height, width = samples[0].size
        images: list[Any] = self.pipeline(
            **self._prompts(samples),
            num_inference_steps=case.steps,
            guidance_scale=case.model.guidance,
            generator=[torch.Generator("cpu").manual_seed(index) for index, _ in enumerate(samples)],
            height=height,
            width=width,
            **self._arguments(samples, case),
        ).images
        return images

    def _prompts(self, samples: Sequence[Sample]) -> dict[str, Any]:
        if self._prior is None:
            length = self.pipeline.tokenizer_2.model_max_length
            return {"prompt": [sample.prompt for sample in samples], "max_sequence_length": length}
        # The first pipeline adds up the pictures of a call, so each sample needs its own.
        made = [self._prior(sample.references[0], prompt=sample.prompt) for sample in samples]
        names = ("prompt_embeds", "pooled_prompt_embeds")
        return {name: torch.cat([getattr(each, name) for each in made]) for name in names}

    def _arguments(self, samples: Sequence[Sample], case: Case) -> dict[str, Any]:
        """What only some pipelines take."""
        required, found = case.model.family.required, dict[str, Any]()
        if "image" in required:
            found["image"] = [sample.image for sample in samples]
        if "mask" in required:
            found["mask_image"] = [sample.mask for sample in samples]
        if "control_image" in required:
            found["control_image"] = [sample.control_image for sample in samples]
        if "references" in required and self._prior is None:
            found["image"] = [sample.references[0] for sample in samples]
        accepted = inspect.signature(self.pipeline.__call__).parameters
        if "strength" in accepted:
            found["strength"] = case.model.strength
        if "max_area" in accepted:  # Kontext would replace the size that is asked for
            assert samples[0].size is not None
            height, width = samples[0].size
            found |= {"max_area": height * width, "_auto_resize": False}
        if case.has_second_pass:
            found |= {"negative_prompt": [NEGATIVE_PROMPT] * len(samples), "true_cfg_scale": TRUE_CFG_SCALE}
        return found

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


def _load(model: BenchmarkModel, is_full_size: bool, device: torch.device) -> Any:
    dtype = torch.bfloat16 if is_full_size else torch.float32
    if is_full_size or model.embedded is None:
        layout = LAYOUTS[model.layout(is_full_size)]
        controlnet = layout_config("plain", dict(layout.transformer)) if model.family.has_controlnet else None
        return random_pipeline(layout, device, dtype, family=model.family, controlnet=controlnet)
    pipeline_class = getattr(diffusers, str(model.family.pipeline))
    return pipeline_class.from_pretrained(model_directory(f"embedded:{model.embedded}"), dtype=dtype).to(device)


def _load_prior(pipeline: Any, model: BenchmarkModel, is_full_size: bool, device: torch.device) -> Any:
    """Redux: the library's first pipeline, which turns a picture and a prompt into embeddings for the second one."""
    prior = redux_without_weights(LAYOUTS[model.layout(is_full_size)], pipeline.transformer.dtype)
    draw_redux(prior, device, device)
    texts = {name: getattr(pipeline, name) for name in ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")}
    return diffusers.FluxPriorReduxPipeline(prior.image_encoder, prior.feature_extractor, prior.image_embedder, **texts)


def _batches(samples: Sequence[Sample], batch: int) -> Iterator[list[Sample]]:
    """Groups of adjacent samples of the same size, at most `batch` per group."""
    group: list[Sample] = []
    for sample in samples:
        if group and (len(group) == batch or group[0].size != sample.size):
            yield group
            group = []
        group.append(sample)
    if group:
        yield group
