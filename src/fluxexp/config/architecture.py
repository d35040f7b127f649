"""Reads the size of a FLUX transformer from its config file, before the model is loaded. Never imports torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Self

from fluxexp.config.controlnet_files import controlnet_config
from fluxexp.config.model_paths import model_directory
from fluxexp.config.schema import FluxModelConfig
from fluxexp.config.weight_headers import ComponentError


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Number of blocks, and their attention heads."""

    num_blocks: int = 19 + 38
    """Double and single blocks. The defaults are those of FLUX.1."""
    heads: int = 24
    head_dim: int = 128
    controlnet_blocks: int = 0
    """Blocks of the ControlNet, which are as large as those of the transformer."""

    @property
    def controlnet_share(self) -> float:
        """Work of one call of the ControlNet, as a fraction of one pass of the transformer."""
        return self.controlnet_blocks / self.num_blocks

    @classmethod
    def of(cls, model: FluxModelConfig) -> Self:
        """Read the config files of transformer and ControlNet. Without local ones, assume published sizes."""
        directory = model_directory(model.source) if model.weights == "pretrained" else None
        try:
            values = json.loads((directory / "transformer" / "config.json").read_text()) if directory else {}
            return cls(
                num_blocks=values.get("num_layers", 19) + values.get("num_single_layers", 38),
                heads=values.get("num_attention_heads", 24),
                head_dim=values.get("attention_head_dim", 128),
                controlnet_blocks=_controlnet_blocks(model),
            )
        except (OSError, ValueError):  # the loader reports the damaged file
            return cls()


def _controlnet_blocks(model: FluxModelConfig) -> int:
    if model.controlnet is None:
        return 0
    try:
        values = controlnet_config(model) or {}
    except ComponentError:  # the loader reports the damaged file
        values = {}
    return int(values.get("num_layers", 5) + values.get("num_single_layers", 10))
