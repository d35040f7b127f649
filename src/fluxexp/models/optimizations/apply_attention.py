"""Optimizations of attention: another kernel, or FP8."""

from __future__ import annotations

from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

from fluxexp.config.optimization_catalog import FASTEST
from fluxexp.models.kernels.attention import TORCH_KERNELS, direct_attention, fastest_attention, installed_attention
from fluxexp.models.kernels.fp8_attention import why_unavailable
from fluxexp.models.optimizations.optimization_pass import NotHereError, OptimizationPass, Topic


def _attention_backend(this: OptimizationPass) -> str:
    model, name = this.model, str(this.config.attention_backend)
    if name != FASTEST:
        _set_backend(this, name)
        return f"attention_backend={name}"
    architecture = model.transformer.config
    # The library's forward pass can only use backends that the library knows.
    names = installed_attention() if this.is_hoisted else TORCH_KERNELS
    shape = (this.tokens, architecture.num_attention_heads, architecture.attention_head_dim)
    name, words = fastest_attention(names, *shape, model.dtype, model.device)
    if this.is_hoisted:
        this.change_options(attend=direct_attention(name))
    else:
        _set_backend(this, name)
    return f"attention_backend={name} ({FASTEST}: {words})"


def _set_backend(this: OptimizationPass, name: str) -> None:
    """Set the backend of this model's networks alone: diffusers would also make it the default of all other models."""
    with attention_backend(AttentionBackendName.NATIVE):  # puts the default back at its end
        for network in this.networks:
            network.set_attention_backend(name)


def _fp8_attention(this: OptimizationPass) -> str:
    if reason := why_unavailable(this.device):
        raise NotHereError(reason)
    this.change_options(has_fp8_attention=True)
    return "fp8_attention"


ATTENTION: Topic = {"attention_backend": _attention_backend, "fp8_attention": _fp8_attention}
