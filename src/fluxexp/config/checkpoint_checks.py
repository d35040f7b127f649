"""Checks the checkpoint of a config on disk: directory, family and components. Never imports torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fluxexp.config.checkpoint_files import SUFFIXES, ComponentFile, component_config, model_files
from fluxexp.config.component_checks import BITSANDBYTES, WEIGHT_COMPONENTS, component_error, quantization_method
from fluxexp.config.families import FAMILIES, PIPELINE_FAMILIES, families_loading
from fluxexp.config.model_paths import EMBEDDED, EMBEDDED_MODELS, model_directory
from fluxexp.config.schema import NO_FILES, FluxModelConfig, RunConfig
from fluxexp.config.stored_weights import stored_weights
from fluxexp.config.weight_headers import (
    ComponentError,
    file_tensors,
    has_weights,
    read_json,
    variants,
    weight_files,
)
from fluxexp.errors import ConfigError, Problem


def model_is_there(config: RunConfig) -> Iterator[Problem]:
    """Check that the checkpoint is complete and of the right family, or that random weights have a layout."""
    model = config.model
    if not isinstance(model, FluxModelConfig):
        return
    yield from _check_effects(model)
    if model.weights == "pretrained":
        if model.base is None or Path(model.path).suffix in SUFFIXES:
            yield from _check_model_path(model)
    elif model.layout is None:
        yield Problem(
            "model.layout",
            "must be set for random weights",
            "null",
            f"layouts of {model.family}: {', '.join(FAMILIES[model.family].layouts)}",
        )
    elif model.layout not in FAMILIES[model.family].layouts:
        hint = f"layouts of {model.family}: {', '.join(FAMILIES[model.family].layouts)}"
        yield Problem("model.layout", f"does not fit model.family={model.family}", model.layout, hint)


def _check_effects(model: FluxModelConfig) -> Iterator[Problem]:
    """Refuse keys that would do nothing."""
    is_random = model.weights == "random"
    if is_random and model.base is not None:
        yield Problem("model.base", "has no effect on random weights", model.base, "use null")
    if is_random and model.files != NO_FILES:
        used = [f"model.files.{name}" for name, file in asdict(model.files).items() if file is not None]
        yield Problem(used[0], "has no effect on random weights", hint="use null")
    if model.base is not None and Path(model.path).suffix not in SUFFIXES:
        what = "has no effect, because model.path is not a .safetensors or .gguf file"
        yield Problem("model.base", what, model.base, "use null, or a file as model.path")
    if model.variant is not None and is_random:
        yield Problem("model.variant", "has no effect on random weights", model.variant, "use null")
    if model.revision is not None and (is_random or model_directory(model.source)):
        hint = f"use null, or a hub id as {_key(model)}"
        yield Problem(
            "model.revision", "has no effect, because the weights do not come from a hub", model.revision, hint
        )


def _check_model_path(model: FluxModelConfig) -> Iterator[Problem]:
    key, path = _key(model), Path(model.source).expanduser()
    if directory := model_directory(model.source):
        yield from model_directory_problems(model, directory)
        return
    if model.source.startswith(EMBEDDED):
        yield Problem(key, "is not an embedded model", model.source, f"embedded: {', '.join(EMBEDDED_MODELS)}")
    elif path.exists() or path.suffix in SUFFIXES:
        yield _file_as_source(key, path)
    elif not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", model.source) or path.parent.is_dir():
        yield Problem(
            key,
            "is not a directory",
            model.source,
            "give a directory with a model_index.json, or a hub id (org/name)",
        )
    else:
        try:
            model_files(model)  # the directory is on a hub, but files are here
        except ConfigError as error:
            yield from error.problems


def _file_as_source(key: str, path: Path) -> Problem:
    if key == "model.path" and path.suffix in SUFFIXES:
        what = "is a file, which has no configs, tokenizers and scheduler" if path.exists() else "does not exist"
        hint = "also set model.base to a directory or hub id of such a model, in the layout of diffusers"
        return Problem(key, what, str(path), hint)
    return Problem(key, "is a file", str(path), "give a directory in the diffusers layout")


def _key(model: FluxModelConfig) -> str:
    """The key that names the directory."""
    return "model.path" if model.base is None else "model.base"


def model_directory_problems(model: FluxModelConfig, path: Path) -> Iterator[Problem]:
    """Check the checkpoint of `model` in directory `path`, and its components in single files, without loading it."""
    key = _key(model)
    try:
        files = model_files(model)
    except ConfigError as error:
        yield from error.problems
        return
    index_file = path / "model_index.json"
    if not index_file.is_file():
        yield Problem(key, "has no model_index.json", model.source, "give a directory in the diffusers layout")
        return
    try:
        index = read_json(index_file)
    except ComponentError as error:
        yield Problem(key, f"has a damaged model_index.json: {error}", model.source, error.hint)
        return
    family = FAMILIES[model.family]
    yield from _check_class(model, index.get("_class_name"), has_transformer="transformer" not in files)
    missing = [name for name in family.components if not (path / name).is_dir()]
    if missing:
        yield Problem(key, f"has no {', no '.join(missing)}", model.source, "download the whole repository")
    yield from _check_fit(model, path, files)
    hidden = _components_of_other_variants(path, (*missing, *files), model.variant)
    yield from _check_variant(model, path, hidden)
    for name in family.components:
        if name in missing or name in hidden:
            continue
        if name in files:
            where, value, wrong = files[name].key, str(files[name].file), _file_error(path, name, files)
        else:
            where, value, wrong = key, model.source, _directory_error(path, name, index, model.variant)
        if wrong:
            yield Problem(where, str(wrong), value, wrong.hint)


def _check_class(model: FluxModelConfig, class_name: Any, *, has_transformer: bool) -> Iterator[Problem]:
    """Check the pipeline class of a directory. If the transformer is in a file, all FLUX.1 pipelines fit."""
    family, fitting = FAMILIES[model.family], families_loading(class_name) if isinstance(class_name, str) else ()
    if class_name in (*family.classes, *family.widened) or (fitting and not has_transformer):
        return
    hint = f"use model.family={' or '.join(fitting)}" if fitting else f"families: {', '.join(PIPELINE_FAMILIES)}"
    what = f"contains a {class_name}, but model.family is {model.family}"
    yield Problem(_key(model), what, model.source, hint)


def _file_error(path: Path, name: str, files: Mapping[str, ComponentFile]) -> ComponentError | None:
    """What is wrong with a component in a single file, whose config is in directory `path`."""
    try:
        stored_weights(name, component_config(path, name, files), files[name].tensors)
    except ComponentError as error:
        return error
    return None


def _directory_error(path: Path, name: str, index: Mapping[str, Any], variant: str | None) -> ComponentError | None:
    """What is wrong with a component in the directory."""
    if wrong := component_error(path, name, index, variant):
        return wrong
    if name not in WEIGHT_COMPONENTS:
        return None
    config = read_json(path / name / "config.json")
    if quantization_method(config) != BITSANDBYTES:
        return None
    try:
        files = weight_files(path / name, WEIGHT_COMPONENTS[name].stem, variant)
        stored_weights(name, config, {key: tensor for file in files for key, tensor in file_tensors(file).items()})
    except ComponentError as error:
        return error
    return None


def _components_of_other_variants(
    path: Path, missing: Collection[str], variant: str | None
) -> Mapping[str, Sequence[str]]:
    """The components that have weights only as other variants than `variant`, with the names of these variants."""
    return {
        name: found
        for name, component in WEIGHT_COMPONENTS.items()
        if name not in missing
        and not any(has_weights(path / name, component.stem, usable) for usable in (None, variant))
        and (found := variants(path / name, component.stem))
    }


def _check_variant(model: FluxModelConfig, path: Path, hidden: Mapping[str, Sequence[str]]) -> Iterator[Problem]:
    weights = {path / name: component.stem for name, component in WEIGHT_COMPONENTS.items()}
    found = sorted({name for directory, stem in weights.items() for name in variants(directory, stem)})
    if model.variant is not None and model.variant not in found:
        hint = f"variants: {', '.join(found)}" if found else "use null: the files have no variant"
        yield Problem("model.variant", f"is in no component of {model.source}", model.variant, hint)
    elif hidden:
        names = sorted({name for found in hidden.values() for name in found})
        what = f"is {model.variant or 'null'}, but {', '.join(hidden)} of {model.source} have only {', '.join(names)}"
        yield Problem("model.variant", what, hint=f"use {' or '.join(f'model.variant={name}' for name in names)}")


def _check_fit(model: FluxModelConfig, path: Path, files: Mapping[str, ComponentFile]) -> Iterator[Problem]:
    """Check that the components belong together, and to the family, if their config files can be read."""
    try:
        transformer, vae, clip, t5 = (
            component_config(path, name, files) for name in ("transformer", "vae", "text_encoder", "text_encoder_2")
        )
        actual, packed = transformer["in_channels"], 4 * vae["latent_channels"]
        scale = 2 ** (len(vae["block_out_channels"]) - 1)
        widths = {
            "text_encoder": (clip["hidden_size"], transformer["pooled_projection_dim"]),
            "text_encoder_2": (t5["d_model"], transformer["joint_attention_dim"]),
        }
    except (ComponentError, KeyError, TypeError):  # another check reports a damaged file
        return
    expected = FAMILIES[model.family].in_channels(packed, scale)
    if expected not in (actual, FAMILIES[model.family].widened_channels(actual, packed)):
        what = f"has a transformer with {actual} input channels, but model.family={model.family} needs {expected}"
        key = files["transformer"].key if "transformer" in files else _key(model)
        value = str(files["transformer"].file) if "transformer" in files else model.source
        yield Problem(key, what, value, "use a checkpoint of this family")
    for name, (width, needed) in widths.items():
        if width != needed:
            what = f"has a {name} that makes {width} values per token, but its transformer takes {needed}"
            yield Problem(_key(model), what, model.source, "use components of one model")
