"""Optimizations of the text encoders: quantized weights, and encoded prompts on disk."""

from __future__ import annotations

from fluxexp.config.optimization_catalog import OPTIMIZATIONS
from fluxexp.models.optimizations.optimization_pass import NotHereError, OptimizationPass, Topic
from fluxexp.models.text.text_cache import TextCache
from fluxexp.models.text.text_weights import store_in_eight_bits


def _text_encoder_weights(this: OptimizationPass) -> str:
    kind = this.config.text_encoder_weights
    assert kind is not None
    store_in_eight_bits(this.model.pipeline.text_encoder_2, kind, this.device)
    return OPTIMIZATIONS["text_encoder_weights"].words(kind)


def _text_cache(this: OptimizationPass) -> str:
    model = this.model
    if not model.text_identity:
        raise NotHereError("the text encoders have no identity, which the keys of the cache need")
    # Optimizations that change rounding must change the keys of encodings.
    names = [name for name in ("text_encoder_weights", "onednn_linears") if name in this.applied]
    rounding = [OPTIMIZATIONS[name].words(getattr(this.config, name)) for name in names]
    model.text_cache = TextCache([*model.text_identity, *rounding], model.dtype, model.device)
    return "text_cache"


TEXT: Topic = {"text_encoder_weights": _text_encoder_weights, "text_cache": _text_cache}
