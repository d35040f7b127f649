"""Finds the files of a ControlNet: a directory in the layout of diffusers, or a repository on a hub.

Unlike a pipeline, a ControlNet has its config.json and its weights at the top of its directory. Never imports torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fluxexp.config.component_checks import WEIGHT_COMPONENTS
from fluxexp.config.generation_schema import ControlNetConfig, FluxModelConfig
from fluxexp.config.weight_headers import file_tensors, read_json, weight_files
from fluxexp.errors import ConfigError, Problem

CONTROLNET = "controlnet"
"""The key of `WEIGHT_COMPONENTS`."""
_CONFIG = "config.json"
_KINDS: dict[str, dict[str, Any]] = {
    "plain": {"num_layers": 5, "num_single_layers": 10},
    "union": {"num_layers": 5, "num_single_layers": 10, "num_mode": 10},
    "xlabs": {"num_layers": 2, "num_single_layers": 0, "patch_size": 2, "conditioning_embedding_channels": 16},
}
"""By `model.controlnet.layout`: what differs from the transformer's config."""


def layout_config(layout: str, transformer: dict[str, Any]) -> dict[str, Any]:
    """Config of a ControlNet of random weights, as wide as a transformer with the config `transformer`."""
    config = {name: value for name, value in transformer.items() if name != "out_channels"} | _KINDS[layout]
    for name in ("num_layers", "num_single_layers"):  # those of a small transformer are fewer
        config[name] = min(config[name], transformer[name])
    return config


def controlnet_directory(controlnet: ControlNetConfig) -> Path | None:
    """The directory of a ControlNet on this machine, also in the local hub cache; None if it is not there."""
    local = Path(controlnet.path).expanduser()
    if local.is_dir():
        return local
    if not _is_hub_id(controlnet.path):
        return None
    from huggingface_hub import try_to_load_from_cache  # only if there is a hub id

    try:
        file = try_to_load_from_cache(controlnet.path, _CONFIG, revision=controlnet.revision)
    except ValueError:  # the text cannot be a hub id
        return None
    return Path(file).parent if isinstance(file, str) else None


def is_on_hub(controlnet: ControlNetConfig) -> bool:
    """Whether the path is a hub id."""
    return not Path(controlnet.path).expanduser().is_dir() and _is_hub_id(controlnet.path)


def _is_hub_id(path: str) -> bool:
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not Path(path).parent.is_dir()


def controlnet_files(directory: Path) -> list[Path]:
    """Config and weights of a ControlNet, with the index of its shards.

    Raises:
        ComponentError: the weights are missing.
    """
    weights = weight_files(directory, WEIGHT_COMPONENTS[CONTROLNET].stem, None)
    index = sorted(directory.glob("*.safetensors.index.json")) if len(weights) > 1 else []
    return [directory / _CONFIG, *index, *weights]


def controlnet_tensors(directory: Path) -> tuple[list[Path], dict[str, Any]]:
    """The files with the weights of a ControlNet, and all their tensors by name.

    Raises:
        ComponentError: files are missing or damaged.
    """
    files = weight_files(directory, WEIGHT_COMPONENTS[CONTROLNET].stem, None)
    return files, {name: tensor for file in files for name, tensor in file_tensors(file).items()}


def controlnet_config(model: FluxModelConfig) -> dict[str, Any] | None:
    """The config of the ControlNet of `model` as far as it is known: None for one that is not on this machine yet.

    Raises:
        ComponentError: its config.json is missing or damaged.
    """
    controlnet = model.controlnet
    if controlnet is None:
        return None
    if model.weights == "random":
        return dict(_KINDS[controlnet.layout]) if controlnet.layout else None
    directory = controlnet_directory(controlnet)
    return None if directory is None else read_json(directory / _CONFIG)


def downloaded_controlnet(controlnet: ControlNetConfig) -> Path:
    """Return the directory of a ControlNet on a hub. Downloads the files that are missing.

    Raises:
        ConfigError: it cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    stem = WEIGHT_COMPONENTS[CONTROLNET].stem
    patterns = [_CONFIG, f"{stem}*.safetensors", f"{stem}.safetensors.index.json"]
    try:
        return Path(snapshot_download(controlnet.path, revision=controlnet.revision, allow_patterns=patterns))
    except Exception as error:  # the hub's client and its HTTP library raise errors of many types
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
        what = f"is not in the local hub cache, and cannot be downloaded ({type(error).__name__}: {reason})"
        hint = "download it by other means, and set model.controlnet.path to its directory"
        raise ConfigError(Problem("model.controlnet.path", what, controlnet.path, hint)) from error
