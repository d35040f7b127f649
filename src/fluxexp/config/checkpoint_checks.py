"""Checks the checkpoint of a config on disk: directory, family and components. Never imports torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from fluxexp.config.component_checks import WEIGHT_COMPONENTS, component_error
from fluxexp.config.families import FAMILIES, PIPELINE_FAMILIES, families_loading
from fluxexp.config.model_paths import EMBEDDED, EMBEDDED_MODELS, model_directory
from fluxexp.config.schema import FluxModelConfig, RunConfig
from fluxexp.config.weight_headers import ComponentError, has_weights, read_json, variants
from fluxexp.errors import Problem


def model_is_there(config: RunConfig) -> Iterator[Problem]:
    """Check that the checkpoint is complete and of the right family, or that random weights have a layout."""
    model = config.model
    if not isinstance(model, FluxModelConfig):
        return
    yield from _check_effects(model)
    if model.weights == "pretrained":
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
    if model.variant is not None and is_random:
        yield Problem("model.variant", "has no effect on random weights", model.variant, "use null")
    if model.revision is not None and (is_random or model_directory(model.path)):
        hint = "use null, or a hub id as model.path"
        yield Problem(
            "model.revision", "has no effect, because the weights do not come from a hub", model.revision, hint
        )


def _check_model_path(model: FluxModelConfig) -> Iterator[Problem]:
    key, path = "model.path", Path(model.path).expanduser()
    if directory := model_directory(model.path):
        yield from model_directory_problems(model, directory)
    elif model.path.startswith(EMBEDDED):
        yield Problem(key, "is not an embedded model", model.path, f"embedded: {', '.join(EMBEDDED_MODELS)}")
    elif path.exists():
        yield Problem(key, "is a file", model.path, "give a directory in the diffusers layout")
    elif not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", model.path) or path.parent.is_dir():
        yield Problem(
            key,
            "is not a directory",
            model.path,
            "give a directory with a model_index.json, or a hub id (org/name)",
        )


def model_directory_problems(model: FluxModelConfig, path: Path) -> Iterator[Problem]:
    """Check the checkpoint of `model` in directory `path`, without loading it."""
    index_file = path / "model_index.json"
    if not index_file.is_file():
        yield Problem("model.path", "has no model_index.json", model.path, "give a directory in the diffusers layout")
        return
    try:
        index = read_json(index_file)
    except ComponentError as error:
        yield Problem("model.path", f"has a damaged model_index.json: {error}", model.path, error.hint)
        return
    family, class_name = FAMILIES[model.family], index.get("_class_name")
    if class_name not in family.classes:
        fitting = families_loading(class_name) if isinstance(class_name, str) else ()
        hint = f"use model.family={' or '.join(fitting)}" if fitting else f"families: {', '.join(PIPELINE_FAMILIES)}"
        yield Problem("model.path", f"contains a {class_name}, but model.family is {model.family}", model.path, hint)
    missing = [name for name in family.components if not (path / name).is_dir()]
    if missing:
        yield Problem("model.path", f"has no {', no '.join(missing)}", model.path, "download the whole repository")
    yield from _check_fit(model, path)
    hidden = _components_of_other_variants(path, missing, model.variant)
    yield from _check_variant(model, path, hidden)
    for name in family.components:
        if name not in (*missing, *hidden) and (wrong := component_error(path, name, index, model.variant)):
            yield Problem("model.path", str(wrong), model.path, wrong.hint)


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
        yield Problem("model.variant", f"is in no component of {model.path}", model.variant, hint)
    elif hidden:
        names = sorted({name for found in hidden.values() for name in found})
        what = f"is {model.variant or 'null'}, but {', '.join(hidden)} of {model.path} have only {', '.join(names)}"
        yield Problem("model.variant", what, hint=f"use {' or '.join(f'model.variant={name}' for name in names)}")


def _check_fit(model: FluxModelConfig, path: Path) -> Iterator[Problem]:
    """Check that the components belong together, and to the family, if their config files can be read."""
    try:
        transformer, vae, clip, t5 = (
            read_json(path / name / "config.json") for name in ("transformer", "vae", "text_encoder", "text_encoder_2")
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
    if actual != expected:
        what = f"has a transformer with {actual} input channels, but model.family={model.family} needs {expected}"
        yield Problem("model.path", what, model.path, "use a checkpoint of this family")
    for name, (width, needed) in widths.items():
        if width != needed:
            what = f"has a {name} that makes {width} values per token, but its transformer takes {needed}"
            yield Problem("model.path", what, model.path, "use components of one model")
