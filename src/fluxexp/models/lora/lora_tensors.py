"""Reads a LoRA file: for each layer the low-rank factors of its change, whatever the file's format."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fluxexp.config.lora_files import lora_header
from fluxexp.config.model_paths import lora_file
from fluxexp.config.weight_headers import ComponentError
from fluxexp.errors import SampleError

_ALPHA = re.compile(r"(\.lora_A|\.lora_B|\.lora_linear_layer|\.lora|\.down|\.up|\.weight)*\.alpha$")


@dataclass(frozen=True, slots=True)
class LowRank:
    """The change of one layer: `scale * up @ down` is added to its weight, and `scale * bias` to its bias."""

    down: torch.Tensor
    """A: (rank, inputs)."""
    up: torch.Tensor
    """B: (outputs, rank)."""
    bias: torch.Tensor | None
    """(outputs,)."""
    scale: float
    """alpha / rank. 1 where a format includes it in the factors."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the factors."""
        return self.down.nbytes + self.up.nbytes


@dataclass(frozen=True, slots=True)
class LoraTensors:
    """A LoRA file in host memory."""

    layers: Mapping[str, LowRank]
    """By the name of the layer: `transformer.` or `text_encoder.`, and its name in the module."""
    norms: Mapping[str, torch.Tensor]
    """Weights of the transformer that are replaced, by name: Control LoRAs bring their own QK norms."""


def read_lora(path: str) -> LoraTensors:
    """Read a LoRA. diffusers converts the names and values of all formats (`FluxPipeline.lora_state_dict`).

    Raises:
        SampleError: the file is missing, damaged, or not a LoRA in a known format.
    """
    try:
        header = lora_header(path)
        state, alphas, metadata = _state(path)
        layers = _layers(state, alphas, metadata)
    except ComponentError as error:
        raise SampleError(f"LoRA {path} {error}: {error.hint}") from error
    except (OSError, ValueError, KeyError, AssertionError, RuntimeError) as error:
        raise SampleError(f"LoRA {path} cannot be read by diffusers: {type(error).__name__}: {error}") from error
    # What the checks have promised before the model was loaded is what the library has read.
    if layers.keys() != header.layers.keys():
        other = sorted(layers.keys() ^ header.layers.keys())
        raise SampleError(f"LoRA {path}: diffusers reads other layers than its names say: {', '.join(other[:3])}")
    norms = {name: state[f"transformer.{name}"] for name in header.norms}
    return LoraTensors(layers, norms)


def _state(path: str) -> tuple[dict[str, torch.Tensor], Mapping[str, Any], Mapping[str, Any] | None]:
    from diffusers import FluxPipeline

    state, alphas, metadata = FluxPipeline.lora_state_dict(
        str(lora_file(path).absolute()),
        return_alphas=True,
        return_lora_metadata=True,
        use_safetensors=True,
        local_files_only=True,
    )
    return state, alphas or {}, metadata


def _layers(
    state: Mapping[str, torch.Tensor], alphas: Mapping[str, Any], metadata: Mapping[str, Any] | None
) -> dict[str, LowRank]:
    layers: dict[str, LowRank] = {}
    for component in ("transformer", "text_encoder"):
        own = {
            name.removeprefix(f"{component}."): tensor
            for name, tensor in state.items()
            if name.startswith(f"{component}.") and "lora" in name
        }
        own = _peft_names(own, component)
        scales = _scales(own, component, alphas, metadata)
        for name in _names(own):
            layers[f"{component}.{name}"] = LowRank(
                down=own[f"{name}.lora_A.weight"],
                up=own[f"{name}.lora_B.weight"],
                bias=own.get(f"{name}.lora_B.bias"),
                scale=scales[name],
            )
    return layers


def _names(state: Iterable[str]) -> list[str]:
    return [name.removesuffix(".lora_A.weight") for name in state if name.endswith(".lora_A.weight")]


def _peft_names(state: dict[str, torch.Tensor], component: str) -> dict[str, torch.Tensor]:
    """The tensors with the names of PEFT, as diffusers renames them when it loads them."""
    from diffusers.utils import (
        convert_state_dict_to_diffusers,
        convert_state_dict_to_peft,
        convert_unet_state_dict_to_peft,
    )

    if not state or all(".lora_A." in name or ".lora_B." in name for name in state):
        renamed = state
    elif component == "transformer":
        renamed = convert_unet_state_dict_to_peft(state)
    else:
        renamed = convert_state_dict_to_peft(convert_state_dict_to_diffusers(state))
    return {name.removeprefix("text_model."): tensor for name, tensor in renamed.items()}


def _scales(
    state: Mapping[str, torch.Tensor],
    component: str,
    alphas: Mapping[str, Any],
    metadata: Mapping[str, Any] | None,
) -> dict[str, float]:
    """alpha / rank of each layer."""
    ranks = {name: int(state[f"{name}.lora_B.weight"].shape[1]) for name in _names(state)}
    own = {key.removeprefix(f"{component}."): v for key, v in (metadata or {}).items() if key.startswith(component)}
    if own:
        return {name: _scale_of_config(name, rank, own) for name, rank in ranks.items()}
    of_layer = {
        _ALPHA.sub("", key.removeprefix(f"{component}.")).removeprefix("text_model."): float(value)
        for key, value in alphas.items()
        if key.startswith(f"{component}.")
    }
    if not of_layer:
        return dict.fromkeys(ranks, 1.0)
    usual = Counter(of_layer.values()).most_common(1)[0][0]  # what PEFT takes for layers without their own
    return {name: of_layer.get(name, usual) / rank for name, rank in ranks.items()}


def _scale_of_config(name: str, rank: int, config: Mapping[str, Any]) -> float:
    """The scale by PEFT's `LoraConfig`, which a file can have in its header. The rank is that of the tensors."""
    if config.get("use_dora"):
        raise ComponentError("is a DoRA (it also changes the magnitude of weights)", "use a LoRA")
    alpha = next(
        (value for key, value in (config.get("alpha_pattern") or {}).items() if re.match(rf"(.*\.)?({key})$", name)),
        config.get("lora_alpha", rank),
    )
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
