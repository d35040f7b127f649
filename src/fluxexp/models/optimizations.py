"""What is done to a loaded model for speed or memory: an ordered list of named steps, each optional.

Of which kind each is (exact, lossless, approximate) says `config/optimization.py`. What keeps the arithmetic and cannot
be done here is left out, and the reason recorded; anything else that cannot be applied is an error.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch.utils._triton import has_triton

from fluxexp.config.optimization_kinds import FASTEST, kind_of
from fluxexp.config.schema import OptimizationConfig
from fluxexp.errors import ModelError
from fluxexp.models.flux1.denoiser import HoistedDenoiser
from fluxexp.models.flux1.merged_projections import merge_projections
from fluxexp.models.kernels import matmul_workspace, onednn
from fluxexp.models.kernels.attention import TORCH_KERNELS, direct_attention, fastest_attention, installed_attention
from fluxexp.models.kernels.compile_cache import keep_compiled_code
from fluxexp.models.kernels.fp8_attention import why_not
from fluxexp.models.kernels.fp8_linear import has_fp8, quantise_linears
from fluxexp.models.offload.offloading import TILE, offload
from fluxexp.models.step_cache.step_caches import make_step_cache
from fluxexp.models.text.text_cache import TextCache
from fluxexp.models.text.text_weights import store_in_eight_bits
from fluxexp.models.vae.fused_vae import fuse

if TYPE_CHECKING:
    from fluxexp.models.flux1.flux1_model import Flux1Model

_SHAPES = 256
"""Shapes that a block is compiled for at the most, each by itself; the compiler's own limit is 8."""
_NO_TRITON = "Triton is not installed, or does not know this GPU"

_STEP_CACHE = "step_cache="
_TEXT_WEIGHTS = "text_encoder_weights="
_WITHOUT_WORKSPACE = "no_matmul_workspace"


class NotHereError(Exception):
    """This optimization cannot be done on this device or with these others; says why."""


def _hoist_constants(model: Flux1Model, _config: OptimizationConfig, _tokens: int) -> str:
    model.denoiser = HoistedDenoiser(model.transformer)
    return "hoist_constants"


def _no_matmul_workspace(model: Flux1Model, _config: OptimizationConfig, _tokens: int) -> str:
    if reason := matmul_workspace.do_without(model.device):
        raise NotHereError(reason)
    return _WITHOUT_WORKSPACE


def _attention_backend(model: Flux1Model, config: OptimizationConfig, tokens: int) -> str:
    name = str(config.attention_backend)
    if name != FASTEST:
        model.transformer.set_attention_backend(name)
        return f"attention_backend={name}"
    denoiser, architecture = model.denoiser, model.transformer.config
    names = installed_attention() if isinstance(denoiser, HoistedDenoiser) else TORCH_KERNELS
    shape = (tokens, architecture.num_attention_heads, architecture.attention_head_dim)
    name, words = fastest_attention(names, *shape, model.dtype, model.device)
    if isinstance(denoiser, HoistedDenoiser):
        denoiser.attend = direct_attention(name)
        denoiser.rebuild()
    else:
        model.transformer.set_attention_backend(name)
    return f"attention_backend={name} ({FASTEST}: {words})"


def _modulation_table(model: Flux1Model, _config: OptimizationConfig, _tokens: int) -> str:
    _hoisted(model).has_table = True
    return "modulation_table"


def _fused_kernels(model: Flux1Model, _config: OptimizationConfig, _tokens: int) -> str:
    denoiser = _hoisted(model)
    if model.device.type == "cuda" and not has_triton():
        raise NotHereError(_NO_TRITON)
    for block in (*model.transformer.transformer_blocks, *model.transformer.single_transformer_blocks):
        merge_projections(block.attn)
    _give_memory_back(model.device)
    denoiser.is_fused = True
    denoiser.rebuild()
    return "fused_kernels"


def _fp8_linears(model: Flux1Model, _config: OptimizationConfig, _tokens: int) -> str:
    if not _hoisted(model).is_fused:
        raise NotHereError("it needs fused_kernels")
    if not has_fp8(model.device):
        raise NotHereError("the GPU multiplies no eight-bit numbers by rows: that takes Hopper or later")
    if model.device.type == "cuda" and model.dtype != torch.bfloat16:
        raise NotHereError("its products come in bfloat16 alone: use model.dtype=bfloat16")
    for block in (*model.transformer.transformer_blocks, *model.transformer.single_transformer_blocks):
        home = next(block.parameters()).device
        quantise_linears(block.to(model.device))
        block.to(home)
    _give_memory_back(model.device)
    return "fp8_linears"


def _fp8_attention(model: Flux1Model, config: OptimizationConfig, _tokens: int) -> str:
    denoiser = _hoisted(model)
    if not config.fp8_linears:
        raise NotHereError("it needs fp8_linears")
    reason = why_not(model.device)
    if reason is not None:
        raise NotHereError(reason)
    denoiser.attends_in_fp8 = True
    denoiser.rebuild()
    return "fp8_attention"


def _text_encoder_weights(model: Flux1Model, config: OptimizationConfig, _tokens: int) -> str:
    assert config.text_encoder_weights is not None
    store_in_eight_bits(model.pipeline.text_encoder_2, config.text_encoder_weights, model.device)
    return f"{_TEXT_WEIGHTS}{config.text_encoder_weights}"


def _offload(model: Flux1Model, _config: OptimizationConfig, _tokens: int) -> str:
    if model.device.type != "cuda":
        raise NotHereError("there is no GPU")
    if model.placement is None:
        raise NotHereError("the model was loaded without it")
    offload(model, model.placement)
    _give_memory_back(model.device)
    return f"offload={model.placement.words}"


def _cuda_graph(model: Flux1Model, _config: OptimizationConfig, _tokens: int) -> str:
    denoiser = _hoisted(model)
    if model.device.type != "cuda":
        raise NotHereError("there is no GPU")
    _require_fixed_weights(model)
    denoiser.uses_cuda_graph = True
    denoiser.rebuild()
    if not model.weight_streaming.visits("text"):
        model.capture_text_encoders()
    return "cuda_graph"


def _onednn_linears(model: Flux1Model, _config: OptimizationConfig, _tokens: int) -> str:
    if reason := onednn.why_not(model.device, model.dtype):
        raise NotHereError(reason)
    for part in (model.transformer, model.vae, model.pipeline.text_encoder, model.pipeline.text_encoder_2):
        onednn.use_onednn(part)
    return "onednn_linears"


def _compile_blocks(model: Flux1Model, _config: OptimizationConfig, _tokens: int) -> str:
    _require_compiler(model.device)
    _require_fixed_weights(model)
    if isinstance(model.denoiser, HoistedDenoiser):
        if model.denoiser.is_fused:
            raise NotHereError("fused_kernels leave nothing to compile")
        model.denoiser.compile_blocks()
    else:
        model.transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)
    model.compiles_shapes = True
    return "compile_blocks"


def _fused_vae(model: Flux1Model, _config: OptimizationConfig, _tokens: int) -> str:
    if model.device.type == "cuda" and not has_triton():
        raise NotHereError(_NO_TRITON)
    reason = fuse(model.vae)
    if reason is not None:
        raise NotHereError(reason)
    return "fused_vae"


def _compile_vae(model: Flux1Model, config: OptimizationConfig, _tokens: int) -> str:
    if config.vae_tiling:
        raise NotHereError("vae_tiling decodes tiles of many shapes")
    if config.fused_vae:
        raise NotHereError("fused_vae leaves nothing to compile")
    _require_compiler(model.device)
    model.vae.decoder.compile(fullgraph=True, dynamic=False)
    model.compiles_shapes = True
    return "compile_vae"


def _vae_tiling(model: Flux1Model, _config: OptimizationConfig, _tokens: int) -> str:
    vae = model.vae
    vae.enable_tiling()
    # The library's tiles are as large as the pictures that the VAE was made for: no smaller one would be cut.
    side = min(TILE, vae.config.sample_size)
    vae.tile_sample_min_size, vae.tile_latent_min_size = side, side // model.scale
    return f"vae_tiling={side}"


def _text_cache(model: Flux1Model, _config: OptimizationConfig, _tokens: int) -> str:
    if not model.text_identity:
        raise NotHereError("the text encoders have no name to keep encodings by")
    applied = model.applied_optimizations
    rounding = [name for name in applied if name == "onednn_linears" or name.startswith(_TEXT_WEIGHTS)]
    model.text_cache = TextCache([*model.text_identity, *rounding], model.dtype, model.device)
    return "text_cache"


def _step_cache(model: Flux1Model, config: OptimizationConfig, _tokens: int) -> str:
    assert config.step_cache is not None
    _hoisted(model).cache = make_step_cache(config.step_cache)
    return f"{_STEP_CACHE}{config.step_cache.name}"


_STEPS: Mapping[str, Callable[[Flux1Model, OptimizationConfig, int], str]] = {
    "hoist_constants": _hoist_constants,
    _WITHOUT_WORKSPACE: _no_matmul_workspace,
    "attention_backend": _attention_backend,
    "modulation_table": _modulation_table,
    "fused_kernels": _fused_kernels,
    "fp8_linears": _fp8_linears,
    "fp8_attention": _fp8_attention,
    "fused_vae": _fused_vae,
    "text_encoder_weights": _text_encoder_weights,
    "offload": _offload,
    "onednn_linears": _onednn_linears,
    "compile_blocks": _compile_blocks,
    "cuda_graph": _cuda_graph,
    "compile_vae": _compile_vae,
    "vae_tiling": _vae_tiling,
    "text_cache": _text_cache,
    "step_cache": _step_cache,
}


def change_step_cache(model: Flux1Model, config: OptimizationConfig) -> None:
    """Give a model that was optimized as `config` says the step cache of `config`: nothing else depends on it.

    Raises:
        ModelError: it cannot be applied here.
    """
    if isinstance(model.denoiser, HoistedDenoiser):
        model.denoiser.cache = None
    applied = [words for words in model.applied_optimizations if not words.startswith(_STEP_CACHE)]
    if config.step_cache is not None:
        try:
            applied.append(_step_cache(model, config, 0))
        except (NotHereError, ValueError) as error:
            raise ModelError(f"optimization.step_cache cannot be applied: {error}") from error
    model.applied_optimizations = applied


def apply_optimizations(model: Flux1Model, config: OptimizationConfig, resolution: int) -> None:
    """Apply what `config` asks for, in order; what was applied and what was not, is noted in `model`.

    Args:
        resolution: side in pixels of the images that the model was made for: kernels are chosen for that size.

    Raises:
        ModelError: something asked for cannot be applied here, and cannot be left out without changing pixels.
    """
    tokens = model.tokens(resolution, resolution, None)
    for name, step in _STEPS.items():
        value = getattr(config, name)
        if not value:
            continue
        try:
            model.applied_optimizations.append(step(model, config, tokens))
        except NotHereError as reason:
            if kind_of(name, value) == "approximate":
                raise ModelError(f"optimization.{name} cannot be applied: {reason}") from reason
            model.skipped_optimizations[name] = str(reason)
        except (ValueError, RuntimeError, ImportError, AttributeError) as error:
            raise ModelError(f"optimization.{name} cannot be applied: {error}") from error
    if matmul_workspace.settle(model.device) and not config.no_matmul_workspace:
        model.applied_optimizations.append(f"{_WITHOUT_WORKSPACE} (another model of this process, or the environment)")


def _give_memory_back(device: torch.device) -> None:
    """What weights took that have others in their place, for whatever asks the device how much is free."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _hoisted(model: Flux1Model) -> HoistedDenoiser:
    if not isinstance(model.denoiser, HoistedDenoiser):
        raise NotHereError("it needs hoist_constants")
    return model.denoiser


def _require_fixed_weights(model: Flux1Model) -> None:
    if model.placement is not None and model.placement.moves_transformer:
        raise NotHereError(f"offload={model.placement.policy}: the transformer's weights change their place")


def _require_compiler(device: torch.device) -> None:
    """Get ready to compile for `device`."""
    if device.type == "cuda":
        if not has_triton():
            raise NotHereError(_NO_TRITON)
    elif not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise NotHereError("there is no C++ compiler")
    keep_compiled_code()
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _SHAPES)
    torch._dynamo.config.accumulated_recompile_limit = max(
        torch._dynamo.config.accumulated_recompile_limit, 4 * _SHAPES
    )
