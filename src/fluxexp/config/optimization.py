"""What kind of change each optimization is, and what `auto` means. Knows no torch and no model.

`auto` is settled before anything is named by it: a run's fingerprint, its config.yaml and the other ranks only ever see
what rank 0 chose. So pixels never depend on a device that nothing on disk tells of, and the same command on a machine
with a GPU and on one without makes two runs, each of which says what it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, Literal

from fluxexp.config.schema import MagCache, Optimization, RunConfig

Kind = Literal["exact", "lossless", "approximate"]

KINDS: Mapping[str, Kind] = {
    "hoist_constants": "exact",
    "attention_backend": "lossless",
    "modulation_table": "lossless",
    "fused_mlp": "lossless",
    "compile_blocks": "lossless",
    "compile_vae": "lossless",
    "vae_tiling": "approximate",
    "step_cache": "approximate",
}
"""exact: the same bits. lossless: the same arithmetic by other kernels, latents within a hundredth. approximate:
quality has to be judged."""

NONE = Optimization(
    hoist_constants=False,
    attention_backend=None,
    modulation_table=False,
    fused_mlp=False,
    compile_blocks=False,
    compile_vae=False,
    vae_tiling=False,
    step_cache=None,
)
"""Nothing is done."""

AUTO = "auto"
FASTEST = "fastest"
MEASURED = "measured"


def is_settled(optimization: Optimization) -> bool:
    """Whether no `auto` is left, and no figure that only this machine knows."""
    return AUTO not in asdict(optimization).values() and not needs_ratios(optimization)


def needs_ratios(optimization: Optimization) -> bool:
    """Whether it goes by ratios that were measured: `mag_ratios.py` puts them in."""
    return isinstance(optimization.step_cache, MagCache) and optimization.step_cache.ratios == MEASURED


def settled(config: RunConfig, has_gpu: bool) -> RunConfig:
    """`config` with each `auto` replaced by what it means: on where there is a GPU, off where there is none."""
    values = asdict(config.optimization)
    chosen: dict[str, Any] = {name: has_gpu for name, value in values.items() if value == AUTO}
    if "attention_backend" in chosen:
        chosen["attention_backend"] = FASTEST if has_gpu else None
    if "hoist_constants" in chosen and config.optimization.step_cache is not None:
        chosen["hoist_constants"] = True  # a step cache works on the blocks one by one, and it changes no bit
    return replace(config, optimization=replace(config.optimization, **chosen))


def chosen(optimization: Optimization, *kinds: Kind) -> dict[str, Any]:
    """What is asked for of `kinds`, by name."""
    return {name: value for name, value in asdict(optimization).items() if value and kind_of(name, value) in kinds}


def kind_of(name: str, value: Any) -> Kind:
    """What kind of change it is to set option `name` to `value`: attention in eight bits is not lossless."""
    return "approximate" if name == "attention_backend" and "sage" in value else KINDS[name]
