"""All functions that apply an optimization, by its name."""

from __future__ import annotations

from fluxexp.config.optimization_catalog import OPTIMIZATIONS
from fluxexp.models.optimizations.apply_attention import ATTENTION
from fluxexp.models.optimizations.apply_denoiser import DENOISER
from fluxexp.models.optimizations.apply_linear_layers import LINEAR_LAYERS
from fluxexp.models.optimizations.apply_offload import OFFLOAD
from fluxexp.models.optimizations.apply_text import TEXT
from fluxexp.models.optimizations.apply_vae import VAE
from fluxexp.models.optimizations.optimization_pass import Topic

APPLY: Topic = {**DENOISER, **ATTENTION, **LINEAR_LAYERS, **VAE, **TEXT, **OFFLOAD}

if APPLY.keys() != OPTIMIZATIONS.keys():
    unmatched = sorted(APPLY.keys() ^ OPTIMIZATIONS.keys())
    raise TypeError(f"each optimization needs a declaration and a function that applies it: {unmatched}")
