"""Checks the checkpoint of a config on disk: directory, family and components. Never imports torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from fluxexp.config.families import FAMILIES, PIPELINE_FAMILIES, families_loading
from fluxexp.config.model_paths import EMBEDDED, EMBEDDED_MODELS, model_directory
from fluxexp.config.schema import FluxModelConfig, RunConfig
from fluxexp.errors import Problem


def model_is_there(config: RunConfig) -> Iterator[Problem]:
    """Check that the checkpoint is complete and of the right family, or that random weights have a layout."""
    model = config.model
    if not isinstance(model, FluxModelConfig):
        return
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


def _check_model_path(model: FluxModelConfig) -> Iterator[Problem]:
    key, path = "model.path", Path(model.path).expanduser()
    if directory := model_directory(model.path):
        yield from _check_model_directory(model, directory)
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


def _check_model_directory(model: FluxModelConfig, path: Path) -> Iterator[Problem]:
    index = path / "model_index.json"
    if not index.is_file():
        yield Problem("model.path", "has no model_index.json", model.path, "give a directory in the diffusers layout")
        return
    try:
        class_name = json.loads(index.read_text())["_class_name"]
    except (ValueError, KeyError, OSError) as error:
        yield Problem("model.path", f"has a damaged model_index.json ({error})", model.path, "download it again")
        return
    family = FAMILIES[model.family]
    if class_name not in family.classes:
        fitting = families_loading(class_name)
        hint = f"use model.family={' or '.join(fitting)}" if fitting else f"families: {', '.join(PIPELINE_FAMILIES)}"
        yield Problem("model.path", f"contains a {class_name}, but model.family is {model.family}", model.path, hint)
    missing = [name for name in family.components if not (path / name).is_dir()]
    if missing:
        yield Problem("model.path", f"has no {', no '.join(missing)}", model.path, "download the whole repository")
    yield from _check_channels(model, path)
    for name in ("text_encoder", "text_encoder_2", "transformer", "vae"):
        if name not in missing and not any((path / name).glob("*.safetensors")):
            yield Problem("model.path", f"has no safetensors in {name}/", model.path, "fluxexp reads no other format")


def _check_channels(model: FluxModelConfig, path: Path) -> Iterator[Problem]:
    """Compare the transformer's input channels with those of the family, if the config files can be read."""
    try:
        transformer = json.loads((path / "transformer" / "config.json").read_text())
        vae = json.loads((path / "vae" / "config.json").read_text())
        actual, packed = transformer["in_channels"], 4 * vae["latent_channels"]
        scale = 2 ** (len(vae["block_out_channels"]) - 1)
    except (OSError, ValueError, KeyError, TypeError):  # the loader reports the damaged file
        return
    expected = FAMILIES[model.family].in_channels(packed, scale)
    if actual != expected:
        what = f"has a transformer with {actual} input channels, but model.family={model.family} needs {expected}"
        yield Problem("model.path", what, model.path, "use a checkpoint of this family")
