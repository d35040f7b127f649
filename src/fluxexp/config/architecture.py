"""Reads the size of a FLUX transformer from its config file, before the model is loaded. Never imports torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Self

from fluxexp.config.model_paths import model_directory
from fluxexp.config.schema import FluxModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Number of transformer blocks, and their attention heads."""

    num_blocks: int = 19 + 38
    """Double and single blocks. The defaults are those of FLUX.1."""
    heads: int = 24
    head_dim: int = 128

    @classmethod
    def of(cls, model: FluxModelConfig) -> Self:
        """Read the transformer's config file. Without a local one, return the size of FLUX.1."""
        directory = model_directory(model.source) if model.weights == "pretrained" else None
        try:
            values = json.loads((directory / "transformer" / "config.json").read_text()) if directory else {}
            return cls(
                num_blocks=values.get("num_layers", 19) + values.get("num_single_layers", 38),
                heads=values.get("num_attention_heads", 24),
                head_dim=values.get("attention_head_dim", 128),
            )
        except (OSError, ValueError):  # the loader reports the damaged file
            return cls()
