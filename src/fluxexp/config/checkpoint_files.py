"""Finds the components of a model that are in single files (`model.path`, `model.files`). Never imports torch.

A file has one component, or several with a prefix each, as the complete checkpoints of ComfyUI have them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fluxexp.config.gguf_headers import gguf_tensors
from fluxexp.config.llama_cpp_names import T5_MARK
from fluxexp.config.schema import FluxModelConfig
from fluxexp.config.weight_headers import ComponentError, Tensors, file_tensors, read_json
from fluxexp.errors import ConfigError, Problem

GGUF = ".gguf"
SUFFIXES = (".safetensors", GGUF)
"""How the names of files end that fluxexp loads."""
_PREFIXES: Mapping[str, tuple[str, ...]] = {
    "transformer": ("model.diffusion_model.", "diffusion_model."),
    "vae": ("first_stage_model.", "vae."),
    "text_encoder": ("text_encoders.clip_l.transformer.",),
    "text_encoder_2": ("text_encoders.t5xxl.transformer.",),
}
"""Prefixes of the tensors of a component in files with several components."""
_MARKS: Mapping[str, tuple[str, ...]] = {
    "transformer": ("img_in.weight", "x_embedder.weight"),
    "vae": ("encoder.conv_in.weight",),
    "text_encoder": ("text_model.final_layer_norm.weight", "final_layer_norm.weight"),
    "text_encoder_2": ("encoder.final_layer_norm.weight", T5_MARK),
}
"""One of these is in every file of a component, after its prefix."""
_GUIDANCE = ("guidance_in.", "time_text_embed.guidance_embedder.")
_OTHERS = re.compile(r"text_encoders\.\w+\.logit_scale|.*\.scaled_fp8|scaled_fp8")
"""Tensors of ComfyUI that belong to no component, or that only say that others are in FP8."""


@dataclass(frozen=True, slots=True)
class ComponentFile:
    """A component in a file."""

    key: str
    """The config key that names the file."""
    file: Path
    prefix: str
    """Start of the names of its tensors in the file."""
    tensors: Tensors
    """Its tensors, by their names without prefix."""


def model_files(model: FluxModelConfig) -> Mapping[str, ComponentFile]:
    """Return the components of `model` that are in single files. All others are in the directory of `model.source`.

    Raises:
        ConfigError: a file is missing, damaged or without a component of FLUX, or it is of no use.
    """
    chosen: dict[str, ComponentFile] = {}
    if model.base is not None:
        chosen |= _components("model.path", model.path)
    from_path = set(chosen)
    for spec in fields(model.files):
        given: str | None = getattr(model.files, spec.name)
        if given is None:
            continue
        key = f"model.files.{spec.name}"
        found = _components(key, given)
        if spec.name not in found:
            raise ConfigError(Problem(key, f"has no {spec.name}, but {' and '.join(found)}", given, "use another file"))
        chosen[spec.name] = found[spec.name]
        from_path.discard(spec.name)
    if model.base is not None and not from_path:
        what = "has no effect, because model.files replaces all of its components"
        raise ConfigError(Problem("model.path", what, model.path, "use the directory of model.base as model.path"))
    return chosen


def component_config(directory: Path, name: str, files: Mapping[str, ComponentFile]) -> dict[str, Any]:
    """Return the config of a component: that of `directory`, fitted to the component's single file if it has one.

    The transformers of FLUX.1-dev and its relatives differ only by their input channels. So a file of one goes with the
    directory of another, which has the same text encoders and VAE.

    Raises:
        ComponentError: there is no config, or the file has guidance and the directory's transformer has none.
    """
    config = read_json(directory / name / "config.json")
    if name != "transformer" or name not in files:
        return config
    tensors = files[name].tensors
    inputs = next(tensors[mark].shape for mark in _MARKS[name] if mark in tensors)
    outputs = config.get("out_channels") or config.get("in_channels")
    has_guidance = any(tensor.startswith(_GUIDANCE) for tensor in tensors)
    if has_guidance != bool(config.get("guidance_embeds")):
        what = "with" if has_guidance else "without"
        reason = f"transformer/config.json is of another model than the file, whose transformer is {what} guidance"
        raise ComponentError(reason, f"use a directory of {'FLUX.1-dev' if has_guidance else 'FLUX.1-schnell'}")
    return {**config, "in_channels": inputs[-1], "out_channels": outputs}


def _components(key: str, path: str) -> dict[str, ComponentFile]:
    file = Path(path).expanduser()
    try:
        if file.suffix not in SUFFIXES:
            raise ComponentError("is not a .safetensors or .gguf file", "give a file in one of these formats")
        tensors = gguf_tensors(file) if file.suffix == GGUF else file_tensors(file)
        if file.suffix == GGUF and find_spec("gguf") is None:
            raise ComponentError("needs the package gguf, which is not installed", "pip install 'fluxexp[gguf]'")
    except ComponentError as error:
        raise ConfigError(Problem(key, str(error), path, error.hint)) from error
    found = {name: ComponentFile(key, file, prefix, own) for name, prefix, own in _split(tensors)}
    if not found:
        example = ", ".join(sorted(tensors)[:3])
        hint = "use a file of a FLUX.1 transformer, VAE, CLIP or T5, or a complete checkpoint of ComfyUI"
        raise ConfigError(Problem(key, f"has no component of FLUX.1 (its tensors: {example}, ...)", path, hint))
    return found


def _split(tensors: Tensors) -> Iterator[tuple[str, str, Tensors]]:
    """Each component with its prefix and its tensors."""
    kept = {name: tensor for name, tensor in tensors.items() if not _OTHERS.fullmatch(name)}
    has_prefixes = False
    for component, prefixes in _PREFIXES.items():
        for prefix in prefixes:
            own = {name.removeprefix(prefix): tensor for name, tensor in kept.items() if name.startswith(prefix)}
            if any(mark in own for mark in _MARKS[component]):
                has_prefixes = True
                yield component, prefix, own
                break
    if not has_prefixes:
        # The marks of CLIP and T5 differ only by the start, and all other marks are in one component only.
        alone = next((name for name, marks in _MARKS.items() if any(mark in kept for mark in marks)), None)
        if alone is not None:
            yield alone, "", kept
