"""Optimizations of the VAE: fused or compiled, and tiled decoding."""

from __future__ import annotations

from fluxexp.models.flux1.offloading import TILE
from fluxexp.models.optimizations.compiler import require_compiler
from fluxexp.models.optimizations.optimization_pass import NotHereError, OptimizationPass, Topic
from fluxexp.models.vae.fused_vae import fuse


def _fused_vae(this: OptimizationPass) -> str:
    this.require_triton()
    if reason := fuse(this.model.vae):
        raise NotHereError(reason)
    return "fused_vae"


def _compile_vae(this: OptimizationPass) -> str:
    require_compiler(this.device)
    this.model.vae.decoder.compile(fullgraph=True, dynamic=False)
    this.model.compiles_shapes = True
    return "compile_vae"


def _vae_tiling(this: OptimizationPass) -> str:
    vae = this.model.vae
    vae.enable_tiling()
    # By default a tile is as large as the images that the VAE was trained for, so that most images would not be tiled.
    side = min(TILE, vae.config.sample_size)
    vae.tile_sample_min_size, vae.tile_latent_min_size = side, side // this.model.scale
    return f"vae_tiling={side}"


VAE: Topic = {"fused_vae": _fused_vae, "compile_vae": _compile_vae, "vae_tiling": _vae_tiling}
