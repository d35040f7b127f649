"""Rules between keys, and about files: what no single key's type can say. Never imports torch."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from fluxexp.config.architecture import Architecture
from fluxexp.config.build import unknown_name
from fluxexp.config.families import FAMILIES, PIPELINE_FAMILIES, families_loading
from fluxexp.config.model_paths import EMBEDDED, EMBEDDED_MODELS, model_directory
from fluxexp.config.optimization_needs import unmet_needs
from fluxexp.config.optimizations import AUTO, FASTEST
from fluxexp.config.schema import (
    FluxModelConfig,
    FolderDatasetConfig,
    MagCacheConfig,
    PromptsDatasetConfig,
    RunConfig,
    TableDatasetConfig,
    TaylorSeerCacheConfig,
)
from fluxexp.errors import ConfigError, Problem

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


def check(config: RunConfig) -> None:
    """Raise ConfigError with everything that is wrong between the keys of `config` or on disk."""
    problems = [problem for rule in _RULES for problem in rule(config)]
    if problems:
        raise ConfigError(problems)


def _sampling_and_output_suit_the_family(config: RunConfig) -> Iterator[Problem]:
    family, sampling = FAMILIES[config.model.family], config.sampling
    if family.image == "unused" and sampling.strength < 1:
        yield Problem("sampling.strength", "has no meaning without an image", sampling.strength, "use 1.0")
    if config.output.paste and not family.paints_masked_region:
        what = f"needs a model that fills a masked region, and {config.model.name} {family.purpose}"
        yield Problem("output.paste", what, True, "set output.paste=false")


def _dataset_suits_the_family(config: RunConfig) -> Iterator[Problem]:
    family, dataset = FAMILIES[config.model.family], config.dataset
    about = f"{config.model.name} {family.purpose}"
    if isinstance(dataset, PromptsDatasetConfig):
        if family.image == "required":
            hint = "use dataset=folder or dataset=table, or a text-to-image model (+experiment=text_to_image)"
            yield Problem("dataset", f"has no images, and {about}", "prompts", hint)
    elif isinstance(dataset, FolderDatasetConfig | TableDatasetConfig):
        if family.image == "unused":
            hint = "use dataset=prompts, which also reads the prompt column of a table"
            yield Problem("dataset", f"has images that would not be used: {about}", dataset.kind, hint)
        elif family.mask == "unused" and dataset.mask != "none":
            what = f"lets the dataset have masks that would not be used: {about}"
            yield Problem(
                "dataset.mask", what, dataset.mask or "null", "use dataset.mask=none: masks are not read then"
            )
        elif family.mask == "required" and dataset.mask == "none":
            hint = "use null for the dataset's own masks, or box, center, strokes or outpaint to have them drawn"
            yield Problem("dataset.mask", f"leaves samples without a mask, and {about}", "none", hint)


def _mask_choices_agree(config: RunConfig) -> Iterator[Problem]:
    dataset = config.dataset
    if isinstance(dataset, FolderDatasetConfig | TableDatasetConfig) and dataset.mask == "none":
        masks = dataset.masks if isinstance(dataset, FolderDatasetConfig) else None
        for key, value in (("dataset.alpha_mask", dataset.alpha_mask), ("dataset.masks", masks)):
            if value:
                yield Problem(key, "has no effect with dataset.mask=none", value, "leave one of the two out")


def _optimizations_suit_the_family(config: RunConfig) -> Iterator[Problem]:
    family = FAMILIES[config.model.family]
    for name, value in asdict(config.optimization).items():
        if value and value != AUTO and not family.supports(name):
            yield Problem(f"optimization.{name}", f"does not work with model.family={family.name}", value, "use false")


def _world_size_as_expected(config: RunConfig) -> Iterator[Problem]:
    expected = config.parallelism.expect_world_size
    actual = int(os.environ.get("WORLD_SIZE") or 1)
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
    elif model.layout not in FAMILIES[model.family].layouts:
        hint = f"layouts of {model.family}: {', '.join(FAMILIES[model.family].layouts)}"
        yield Problem("model.layout", f"does not fit model.family={model.family}", model.layout, hint)


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
    family = FAMILIES[model.family]
    if class_name not in family.classes:
        fitting = families_loading(class_name)
        hint = f"use model.family={' or '.join(fitting)}" if fitting else f"families: {', '.join(PIPELINE_FAMILIES)}"
        yield Problem("model.path", f"holds a {class_name}, and model.family is {model.family}", model.path, hint)
    missing = [name for name in family.components if not (path / name).is_dir()]
    if missing:
        yield Problem("model.path", f"lacks {', '.join(missing)}", model.path, "download the whole repository")
    yield from _check_channels(model, path)
    for name in ("text_encoder", "text_encoder_2", "transformer", "vae"):
        if name not in missing and not any((path / name).glob("*.safetensors")):
            yield Problem("model.path", f"has no safetensors in {name}/", model.path, "other formats are not read")


def _check_channels(model: FluxModelConfig, path: Path) -> Iterator[Problem]:
    """Compare the transformer's input channels with the family's, where the config files tell both."""
    try:
        transformer = json.loads((path / "transformer" / "config.json").read_text())
        vae = json.loads((path / "vae" / "config.json").read_text())
        actual, packed = transformer["in_channels"], 4 * vae["latent_channels"]
        scale = 2 ** (len(vae["block_out_channels"]) - 1)
    except (OSError, ValueError, KeyError, TypeError):  # loading the model will say what is wrong with it
        return
    expected = FAMILIES[model.family].in_channels(packed, scale)
    if actual != expected:
        what = f"has a transformer of {actual} input channels, and model.family={model.family} needs {expected}"
        yield Problem("model.path", what, model.path, "use a checkpoint of this family")


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
    if isinstance(cache, TaylorSeerCacheConfig) and config.scheduler.name == "flow_match_heun":
        what = "extrapolates from step to step, and flow_match_heun evaluates each noise level twice"
        yield Problem("optimization.step_cache", what, cache.name, "use first_block or magcache, or another scheduler")
    if isinstance(cache, MagCacheConfig) and cache.ratios == []:
        yield Problem("optimization.step_cache.ratios", "must not be empty", "[]", "use measured or flux_dev")


def _optimizations_have_what_they_need(config: RunConfig) -> Iterator[Problem]:
    yield from unmet_needs(config.optimization)


def _ranks_can_work_together(config: RunConfig) -> Iterator[Problem]:
    parallelism = config.parallelism
    if parallelism.context_size is not None and parallelism.mode not in ("context", "auto"):
        what = f"has no meaning with parallelism.mode={parallelism.mode}"
        yield Problem("parallelism.context_size", what, parallelism.context_size, "use parallelism=context")
    world_size = int(os.environ.get("WORLD_SIZE") or 1)
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
    _sampling_and_output_suit_the_family,
    _dataset_suits_the_family,
    _mask_choices_agree,
    _optimizations_suit_the_family,
    _world_size_as_expected,
    _model_is_there,
    _output_can_be_written,
    _attention_backend_is_known,
    _step_cache_can_work,
    _optimizations_have_what_they_need,
    _ranks_can_work_together,
)
