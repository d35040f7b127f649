"""Rules between keys, and about files: what no single key's type can say. Never imports torch."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from fluxexp.config.architecture import Architecture
from fluxexp.config.build import unknown_name
from fluxexp.config.model_paths import EMBEDDED, EMBEDDED_MODELS, model_directory
from fluxexp.config.optimization_kinds import AUTO, FASTEST
from fluxexp.config.schema import (
    FluxModelConfig,
    MagCacheConfig,
    PromptsDatasetConfig,
    RunConfig,
    TaylorSeerCacheConfig,
)
from fluxexp.errors import ConfigError, Problem
from fluxexp.rank_environment import RankEnvironment

ATTENTION_BACKENDS = frozenset(
    [
        "_flash_3",
        "_flash_3_hub",
        "_flash_3_varlen_hub",
        "_flash_varlen_3",
        "_native_cudnn",
        "_native_efficient",
        "_native_flash",
        "_native_math",
        "_native_npu",
        "_native_xla",
        "_sage_qk_int8_pv_fp16_cuda",
        "_sage_qk_int8_pv_fp16_triton",
        "_sage_qk_int8_pv_fp8_cuda",
        "_sage_qk_int8_pv_fp8_cuda_sm90",
        "aiter_fa2_hub",
        "flash",
        "flash_4_hub",
        "flash_hub",
        "flash_varlen",
        "flash_varlen_hub",
        "flex",
        "native",
        "sage",
        "sage_blackwell_hub",
        "sage_hub",
        "sage_varlen",
        "xformers",
    ]
)
"""Names that diffusers knows, as of its pinned version; a test compares them."""
_WITH_RING = (None, AUTO, FASTEST, "native", "_native_cudnn", "_native_flash")
"""Attention backends that the ring's kernels may stand for."""
_PIPELINE_CLASSES = {"flux_fill": ("FluxFillPipeline",), "flux": ("FluxPipeline",)}
_COMPONENTS = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae")


def check(config: RunConfig) -> None:
    """Raise ConfigError with everything that is wrong between the keys of `config` or on disk."""
    problems = [problem for rule in _RULES for problem in rule(config)]
    if problems:
        raise ConfigError(problems)


def _text_to_image_has_no_image(config: RunConfig) -> Iterator[Problem]:
    if config.model.family == "flux":
        if config.sampling.strength < 1:
            yield Problem("sampling.strength", "has no meaning without an image", config.sampling.strength, "use 1.0")
        if config.output.paste:
            yield Problem(
                "output.paste",
                f"needs a model that fills, and {config.model.name} makes images from text",
                True,
                "set output.paste=false, or use +experiment=text_to_image",
            )


def _filling_needs_images(config: RunConfig) -> Iterator[Problem]:
    if config.model.family == "flux_fill" and isinstance(config.dataset, PromptsDatasetConfig):
        yield Problem(
            "dataset",
            f"has no images for {config.model.name} to fill",
            "prompts",
            "use dataset=folder or dataset=table, or a text-to-image model (+experiment=text_to_image)",
        )


def _world_size_as_expected(config: RunConfig) -> Iterator[Problem]:
    expected = config.parallelism.expect_world_size
    actual = RankEnvironment.from_environment().world_size
    if expected is not None and expected != actual:
        yield Problem("parallelism.expect_world_size", f"but {actual} process(es) were started", expected)


def _model_is_there(config: RunConfig) -> Iterator[Problem]:
    model = config.model
    if not isinstance(model, FluxModelConfig):
        return
    if model.weights == "pretrained":
        yield from _check_model_path(model)
    elif model.layout is None:
        yield Problem("model.layout", "must say what the random weights are for", "null", "use model=flux_fill")
    elif (model.layout == "flux_fill") != (model.family == "flux_fill"):
        yield Problem("model.layout", f"is not of the family {model.family}", model.layout)


def _check_model_path(model: FluxModelConfig) -> Iterator[Problem]:
    key, path = "model.path", Path(model.path).expanduser()
    if directory := model_directory(model.path):
        yield from _check_model_directory(model, directory)
    elif model.path.startswith(EMBEDDED):
        yield Problem(key, "is not an embedded model", model.path, f"embedded: {', '.join(EMBEDDED_MODELS)}")
    elif path.exists():
        yield Problem(key, "is a file, and a directory in the diffusers layout is needed", model.path)
    elif not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", model.path) or path.parent.is_dir():
        yield Problem(
            key, "is not a directory", model.path, "give a directory that holds model_index.json, or org/name"
        )


def _check_model_directory(model: FluxModelConfig, path: Path) -> Iterator[Problem]:
    index = path / "model_index.json"
    if not index.is_file():
        yield Problem("model.path", "holds no model_index.json", model.path, "give a directory in the diffusers layout")
        return
    try:
        class_name = json.loads(index.read_text())["_class_name"]
    except (ValueError, KeyError, OSError) as error:
        yield Problem("model.path", f"has a damaged model_index.json ({error})", model.path)
        return
    if class_name not in _PIPELINE_CLASSES[model.family]:
        fitting = [name for name, classes in _PIPELINE_CLASSES.items() if class_name in classes]
        hint = f"use model.family={fitting[0]}" if fitting else f"families: {', '.join(_PIPELINE_CLASSES)}"
        yield Problem("model.path", f"holds a {class_name}, and model.family is {model.family}", model.path, hint)
    missing = [name for name in _COMPONENTS if not (path / name).is_dir()]
    if missing:
        yield Problem("model.path", f"lacks {', '.join(missing)}", model.path, "download the whole repository")
    for name in ("text_encoder", "text_encoder_2", "transformer", "vae"):
        if name not in missing and not any((path / name).glob("*.safetensors")):
            yield Problem("model.path", f"has no safetensors in {name}/", model.path, "other formats are not read")


def _output_can_be_written(config: RunConfig) -> Iterator[Problem]:
    if config.output.dir is None:
        return
    existing = Path(config.output.dir).expanduser().absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield Problem("output.dir", f"cannot be made, as {existing} cannot be written", config.output.dir)


def _attention_backend_is_known(config: RunConfig) -> Iterator[Problem]:
    name = config.optimization.attention_backend
    if name not in (None, AUTO, FASTEST, *ATTENTION_BACKENDS):
        hint = unknown_name(str(name), {FASTEST, *ATTENTION_BACKENDS}, "allowed")
        yield Problem("optimization.attention_backend", "is not known to diffusers", name, hint)


def _step_cache_can_work(config: RunConfig) -> Iterator[Problem]:
    cache = config.optimization.step_cache
    if cache is None:
        return
    if config.optimization.hoist_constants is False:
        what = f"must be on for step_cache={cache.name}, which works on the blocks one by one"
        yield Problem("optimization.hoist_constants", what, False, "use optimization.hoist_constants=true: it is exact")
    if isinstance(cache, TaylorSeerCacheConfig) and config.scheduler.name == "flow_match_heun":
        what = "extrapolates from step to step, and flow_match_heun evaluates each noise level twice"
        yield Problem("optimization.step_cache", what, cache.name, "use first_block or magcache, or another scheduler")
    if isinstance(cache, MagCacheConfig) and cache.ratios == []:
        yield Problem("optimization.step_cache.ratios", "must not be empty", "[]", "use measured or flux_dev")


def _blocks_can_come_one_by_one(config: RunConfig) -> Iterator[Problem]:
    offload = config.optimization.offload
    if offload in ("group", "sequential") and config.optimization.hoist_constants is False:
        what = f"must be on for offload={offload}, which brings blocks one by one"
        yield Problem("optimization.hoist_constants", what, False, "use optimization.hoist_constants=true: it is exact")


def _ranks_can_work_together(config: RunConfig) -> Iterator[Problem]:
    parallelism = config.parallelism
    if parallelism.context_size is not None and parallelism.mode not in ("context", "auto"):
        what = f"has no meaning with parallelism.mode={parallelism.mode}"
        yield Problem("parallelism.context_size", what, parallelism.context_size, "use parallelism=context")
    world_size = RankEnvironment.from_environment().world_size
    if parallelism.mode != "context" or world_size == 1:
        return
    size = parallelism.context_size or world_size
    if world_size % size:
        divisors = [str(number) for number in range(1, world_size + 1) if world_size % number == 0]
        hint = f"use one of {', '.join(divisors)}, or start another number of processes"
        yield Problem("parallelism.context_size", f"does not divide the {world_size} processes", size, hint)
    if size > 1:
        yield from _model_can_be_shared_out(config, size)


def _model_can_be_shared_out(config: RunConfig, size: int) -> Iterator[Problem]:
    optimization, kind = config.optimization, config.parallelism.context_kind
    together = f"{size} ranks that make images together"
    if optimization.hoist_constants is False:
        hint = "use optimization.hoist_constants=true: it is exact"
        yield Problem("optimization.hoist_constants", f"must be on for {together}", False, hint)
    if optimization.fp8_attention is True:
        hint = "use optimization.fp8_attention=false: fp8_linears go with it"
        yield Problem("optimization.fp8_attention", f"is not made for {together}", True, hint)
    backend = optimization.attention_backend
    if kind == "ring" and backend not in _WITH_RING:
        what = "is not used by parallelism.context_kind=ring, which has kernels of its own"
        yield Problem("optimization.attention_backend", what, backend, f"use {FASTEST}, or context_kind=ulysses")
    text_tokens = config.sampling.max_sequence_length
    if text_tokens is not None and text_tokens < size:
        yield Problem("sampling.max_sequence_length", f"is too short for {together}", text_tokens, f"at least {size}")
    if kind == "ulysses" and isinstance(config.model, FluxModelConfig):
        heads = Architecture.of(config.model).heads
        if heads < size:
            what = f"is more than the {heads} attention heads that context_kind=ulysses shares out"
            yield Problem("parallelism.context_size", what, size, "use fewer, or parallelism.context_kind=ring")


_RULES: tuple[Callable[[RunConfig], Iterator[Problem]], ...] = (
    _text_to_image_has_no_image,
    _filling_needs_images,
    _world_size_as_expected,
    _model_is_there,
    _output_can_be_written,
    _attention_backend_is_known,
    _step_cache_can_work,
    _blocks_can_come_one_by_one,
    _ranks_can_work_together,
)
