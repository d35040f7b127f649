"""Adds input channels to the transformer of a text-to-image checkpoint, for a Control LoRA."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fluxexp.config.lora_checks import widened_config
from fluxexp.config.weight_headers import ComponentError


@torch.no_grad()
def widen_input(transformer: Any, family: str) -> None:
    """Add the channels that `family` needs and the transformer lacks (`Family.widened`), with weights of 0.

    diffusers does the same when it loads a Control LoRA into `FluxControlPipeline`
    (`FluxLoraLoaderMixin._maybe_expand_transformer_param_shape_or_error_`).

    Raises:
        ComponentError: the input layer is quantized.
    """
    config = widened_config(family, transformer.config)
    if config["in_channels"] == transformer.config["in_channels"]:
        return
    narrow = transformer.x_embedder
    if type(narrow) is not nn.Linear:
        reason = f"has a quantized input layer (a {type(narrow).__name__}), which cannot get more channels"
        raise ComponentError(reason, "use weights that are not quantized, or a Control checkpoint")
    weight = narrow.weight
    wide = nn.Linear(config["in_channels"], narrow.out_features, device=weight.device, dtype=weight.dtype)
    wide.weight.zero_()
    wide.weight[:, : narrow.in_features] = weight
    wide.bias.copy_(narrow.bias)
    transformer.x_embedder = wide.requires_grad_(weight.requires_grad).train(narrow.training)
    transformer.register_to_config(in_channels=config["in_channels"], out_channels=config["out_channels"])
