"""Optimizations of linear layers and the fused kernels around them."""

from __future__ import annotations

from typing import Any

import torch

from fluxexp.models.kernels import matmul_workspace, onednn
from fluxexp.models.kernels.fp8_linear import has_fp8, quantize_linears
from fluxexp.models.kernels.merged_projections import merge_projections
from fluxexp.models.optimizations.optimization_pass import NotHereError, OptimizationPass, Topic


def _no_matmul_workspace(this: OptimizationPass) -> str:
    if reason := matmul_workspace.disable_workspace(this.device):
        raise NotHereError(reason)
    return "no_matmul_workspace"


def _fused_kernels(this: OptimizationPass) -> str:
    this.require_triton()
    this.require_merged_loras()
    for block in _blocks(this):
        merge_projections(block.attn)
    this.free_replaced_weights()
    this.change_options(is_fused=True)
    return "fused_kernels"


def _fp8_linears(this: OptimizationPass) -> str:
    model = this.model
    if not has_fp8(model.device):
        raise NotHereError("row-wise FP8 matrix products need a Hopper GPU or newer")
    if model.device.type == "cuda" and model.dtype != torch.bfloat16:
        raise NotHereError("FP8 matrix products only give bfloat16: use model.dtype=bfloat16")
    for block in _blocks(this):
        # Block by block, so that the device never has to hold a whole transformer that will be offloaded.
        home = next(block.parameters()).device
        quantize_linears(block.to(model.device), keeps_original=model.loras.keeps_quantized)
        block.to(home)
    this.free_replaced_weights()
    return "fp8_linears"


def _onednn_linears(this: OptimizationPass) -> str:
    model = this.model
    if reason := onednn.why_unavailable(model.device, model.dtype):
        raise NotHereError(reason)
    for part in (*this.networks, model.vae, model.pipeline.text_encoder, model.pipeline.text_encoder_2):
        onednn.use_onednn(part)
    return "onednn_linears"


def _blocks(this: OptimizationPass) -> list[Any]:
    networks = this.networks
    return [block for each in networks for block in (*each.transformer_blocks, *each.single_transformer_blocks)]


LINEAR_LAYERS: Topic = {
    "no_matmul_workspace": _no_matmul_workspace,
    "fused_kernels": _fused_kernels,
    "fp8_linears": _fp8_linears,
    "onednn_linears": _onednn_linears,
}
