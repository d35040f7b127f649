"""Optimizations of the denoiser as a whole: constants, modulations, compilation, CUDA graphs, step caches."""

from __future__ import annotations

from fluxexp.config.optimization_catalog import OPTIMIZATIONS
from fluxexp.models.optimizations.compiler import require_compiler
from fluxexp.models.optimizations.optimization_pass import NotHereError, OptimizationPass, Topic
from fluxexp.models.step_cache.step_caches import make_step_cache


def _hoist_constants(_: OptimizationPass) -> str:
    return "hoist_constants"  # `OptimizationPass.build_denoiser` does the rest


def _modulation_table(this: OptimizationPass) -> str:
    this.change_options(has_modulation_table=True)
    return "modulation_table"


def _compile_blocks(this: OptimizationPass) -> str:
    require_compiler(this.device)
    this.require_fixed_weights()
    this.require_merged_loras()
    if this.is_hoisted:
        this.change_options(is_compiled=True)
    elif this.model.pictures.ip_adapter is not None:
        raise NotHereError("an IP-Adapter needs hoist_constants for it: the factors in the library's layers change")
    else:
        for network in this.networks:
            for block in (*network.transformer_blocks, *network.single_transformer_blocks):
                block.compile(fullgraph=True, dynamic=False)
    this.model.compiles_shapes = True
    return "compile_blocks"


def _cuda_graph(this: OptimizationPass) -> str:
    this.require_gpu()
    this.require_fixed_weights()
    this.require_merged_loras()
    this.change_options(has_cuda_graph=True)
    if not this.model.weight_streaming.streams("text"):  # a captured graph holds the addresses of weights
        this.model.capture_text_encoders()
    return "cuda_graph"


def _step_cache(this: OptimizationPass) -> str:
    config = this.config.step_cache
    assert config is not None
    this.change_options(step_cache=make_step_cache(config))
    return OPTIMIZATIONS["step_cache"].words(config)


DENOISER: Topic = {
    "hoist_constants": _hoist_constants,
    "modulation_table": _modulation_table,
    "compile_blocks": _compile_blocks,
    "cuda_graph": _cuda_graph,
    "step_cache": _step_cache,
}
