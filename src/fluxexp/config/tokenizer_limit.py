"""Reads from a tokenizer's config how many tokens of a prompt T5 reads, before a model is loaded. Imports no torch."""

from __future__ import annotations

import json

from fluxexp.config.model_paths import model_directory
from fluxexp.config.schema import FluxModelConfig, ModelConfig

UNLIMITED = 1 << 30


def tokenizer_limit(model: ModelConfig) -> int:
    """The maximum length of T5's tokenizer; `UNLIMITED` if there is no local config, or if it says nothing.

    Raises:
        OSError: the file is there and cannot be read. It is not ignored, because all ranks must find the same limit.
    """
    directory = None
    if isinstance(model, FluxModelConfig) and model.weights == "pretrained":
        directory = model_directory(model.source)
    try:
        text = (directory / "tokenizer_2" / "tokenizer_config.json").read_text() if directory else "{}"
        limit = json.loads(text).get("model_max_length")
    except (FileNotFoundError, ValueError, AttributeError):  # the loader reports the missing or damaged file
        return UNLIMITED
    return limit if isinstance(limit, int) and 0 < limit < UNLIMITED else UNLIMITED
