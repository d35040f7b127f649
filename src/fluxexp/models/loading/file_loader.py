"""Loads components from single files in any layout that fluxexp knows, and from directories of bitsandbytes.

Weights in FP8 become the weights of FP8 layers as they are, if the model will have such layers. Otherwise each weight
is dequantized, so that all optimizations apply to all files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import torch
import transformers

from fluxexp.config.component_checks import WEIGHT_COMPONENTS
from fluxexp.config.stored_weights import StoredWeight, stored_weights
from fluxexp.config.weight_headers import Tensors
from fluxexp.models.kernels.fp8_linear import Fp8Linear, quantizable_linears
from fluxexp.models.loading.stored_tensors import TensorReader, open_tensors, read_scales, read_weight


def load_stored_component(
    name: str,
    config: Mapping[str, Any],
    tensors: Tensors,
    files: list[Path],
    prefix: str,
    dtype: torch.dtype,
    *,
    keeps_fp8: bool = False,
) -> torch.nn.Module:
    """Load a component on the host.

    Args:
        name: of the component, a key of `WEIGHT_COMPONENTS`.
        config: of the component.
        tensors: of the files, by their names without prefix.
        files: with its weights.
        prefix: start of the names of its tensors in the files.
        dtype: of its weights.
        keeps_fp8: whether to make FP8 layers of those layers of the blocks that are stored in FP8.

    Raises:
        ComponentError: the files do not have all tensors of the module.
    """
    config = {key: value for key, value in config.items() if key != "quantization_config"}
    weights, reader = stored_weights(name, config, tensors), open_tensors(files, prefix)
    component = WEIGHT_COMPONENTS[name]
    if component.stem == "model":
        return _encoder(component.class_name, config, reader, weights, dtype)
    module_class = getattr(diffusers, component.class_name)
    with accelerate.init_empty_weights():
        module: torch.nn.Module = module_class.from_config(config)
    kept = _make_fp8_layers(module, weights, dtype) if keeps_fp8 else set()
    state = dict(_state(reader, weights, kept, dtype))
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval().requires_grad_(False)


def _encoder(
    class_name: str,
    config: Mapping[str, Any],
    reader: TensorReader,
    weights: Mapping[str, StoredWeight],
    dtype: torch.dtype,
) -> torch.nn.Module:
    """A text encoder: its class, like `from_pretrained`, decides which weights stay in float32."""
    encoder_class = getattr(transformers, class_name)
    read_as = torch.float32 if dtype == torch.float16 else dtype  # in float16, T5 has layers that stay in float32
    state = {key: read_weight(reader, weight, read_as) for key, weight in weights.items()}
    encoder: torch.nn.Module = encoder_class.from_pretrained(
        None, config=encoder_class.config_class.from_dict(dict(config)), state_dict=state, dtype=dtype
    )
    return encoder.eval()


def _make_fp8_layers(transformer: torch.nn.Module, weights: Mapping[str, StoredWeight], dtype: torch.dtype) -> set[str]:
    """Replace the layers whose weights are stored in FP8 by FP8 layers without weights. Returns their names."""
    made = set()
    for name, layer in quantizable_linears(transformer):
        if weights[f"{name}.weight"].is_rowwise_fp8:
            transformer.set_submodule(name, Fp8Linear.empty(layer, dtype))
            made.add(name)
    return made


def _state(
    reader: TensorReader, weights: Mapping[str, StoredWeight], kept: set[str], dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    for key, weight in weights.items():
        layer, _, kind = key.rpartition(".")
        if layer in kept and kind == "weight":
            yield key, reader.rows(weight.piece.source, weight.piece.start, weight.piece.rows).contiguous()
            scales = read_scales(reader, weight).expand(weight.shape[0], 1)
            yield f"{layer}.scales", scales.t().contiguous()
        else:
            yield key, read_weight(reader, weight, dtype)
