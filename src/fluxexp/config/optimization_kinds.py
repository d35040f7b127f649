"""What kind of change each optimization is, and what `auto` means. Knows no torch and no model.

`auto` is settled before anything is named by it: a run's fingerprint, its config.yaml and the other ranks only ever see
what rank 0 chose. So pixels never depend on a device that nothing on disk tells of, and the same command on a machine
with a GPU and on one without makes two runs, each of which says what it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, Literal

from fluxexp.config.schema import MagCacheConfig, OptimizationConfig, RunConfig

OptimizationKind = Literal["exact", "lossless", "approximate"]

KINDS: Mapping[str, OptimizationKind] = {
    "hoist_constants": "exact",
    "no_matmul_workspace": "lossless",
    "attention_backend": "lossless",
    "modulation_table": "lossless",
    "fused_kernels": "lossless",
    "fp8_linears": "approximate",
    "fp8_attention": "approximate",
    "fused_vae": "lossless",
    "text_encoder_weights": "approximate",
    "offload": "exact",
    "onednn_linears": "lossless",
    "compile_blocks": "lossless",
    "cuda_graph": "exact",
    "compile_vae": "lossless",
    "vae_tiling": "approximate",
    "text_cache": "lossless",
    "step_cache": "approximate",
}
"""exact: the same bits. lossless: the same arithmetic by other kernels, latents within a hundredth. approximate:
quality has to be judged."""

NONE = OptimizationConfig(
    hoist_constants=False,
    no_matmul_workspace=False,
    attention_backend=None,
    modulation_table=False,
    fused_kernels=False,
    fp8_linears=False,
    fp8_attention=False,
    fused_vae=False,
    text_encoder_weights=None,
    offload=None,
    onednn_linears=False,
    compile_blocks=False,
    cuda_graph=False,
    compile_vae=False,
    vae_tiling=False,
    text_cache=False,
    step_cache=None,
)
"""Nothing is done."""

_ONLY_ON_GPU = frozenset(
    ["no_matmul_workspace", "cuda_graph", "compile_blocks", "compile_vae", "fused_vae", "text_cache"]
)
"""A CPU's compiler takes longer than a short run, and not every machine has one; its models' encoders are small."""
_ONLY_ON_CPU = frozenset(["onednn_linears"])

AUTO = "auto"
FASTEST = "fastest"
MEASURED = "measured"


def is_settled(optimization: OptimizationConfig) -> bool:
    """Whether no `auto` is left that changes pixels, and no figure that only this machine knows."""
    return AUTO not in asdict(replace(optimization, offload=None)).values() and not needs_ratios(optimization)


def needs_ratios(optimization: OptimizationConfig) -> bool:
    """Whether it goes by ratios that were measured: `mag_ratios.py` puts them in."""
    return isinstance(optimization.step_cache, MagCacheConfig) and optimization.step_cache.ratios == MEASURED


def settled(config: RunConfig, has_gpu: bool) -> RunConfig:
    """`config` with each `auto` replaced by what it means: on, but for what does not pay on such a device."""
    values = asdict(config.optimization)
    off = _ONLY_ON_CPU if has_gpu else _ONLY_ON_GPU
    chosen: dict[str, Any] = {name: name not in off for name, value in values.items() if value == AUTO}
    if "attention_backend" in chosen:
        chosen["attention_backend"] = FASTEST
    if "offload" in chosen:  # each GPU has its own free memory, and pixels do not depend on it
        chosen["offload"] = AUTO if has_gpu else None
    return replace(config, optimization=replace(config.optimization, **chosen))


def chosen(optimization: OptimizationConfig, *kinds: OptimizationKind) -> dict[str, Any]:
    """What is asked for of `kinds`, by name."""
    return {name: value for name, value in asdict(optimization).items() if value and kind_of(name, value) in kinds}


def kind_of(name: str, value: Any) -> OptimizationKind:
    """What kind of change it is to set option `name` to `value`: attention in eight bits is not lossless."""
    return "approximate" if name == "attention_backend" and "sage" in value else KINDS[name]
