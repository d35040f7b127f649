"""Declares every optimization: its name, kind, `auto` rule, needs, conflicts and description. Never imports torch.

This is the only place that describes an optimization. `OptimizationConfig` gives the type of each value,
and `models/optimizations/` applies it. Both fail at import if their names differ from those here.
`tools/optimization_docs.py` writes the presets in `conf/optimization/` and the table in `docs/optimization.md` from
these objects.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from fluxexp.config.build import field_types
from fluxexp.config.schema import OptimizationConfig

OptimizationKind = Literal["exact", "lossless", "approximate"]
"""exact: the same bits. lossless: the same arithmetic by other kernels; latents are no further from those of float32
than the latents of eager bfloat16 are. approximate: the user has to judge the quality."""

AutoRule = Literal["everywhere", "gpu", "cpu"]
"""The devices of rank 0 on which `auto` turns an optimization on."""

AUTO = "auto"
FASTEST = "fastest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Another optimization that has to be applied first."""

    name: str
    because: str
    """What the optimization does that makes this necessary: the end of a sentence after "which"."""
    values: tuple[Any, ...] = ()
    """The values that have this need; empty: all of them. A named value is never skipped, so that an unmet need is a
    config error."""

    def applies_to(self, value: Any) -> bool:
        """Whether `value` has this need."""
        return not self.values or value in self.values


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimization:
    """One change that may be applied to a loaded model for speed or memory."""

    name: str
    """The key below `optimization`."""
    kind: OptimizationKind
    doc: str
    """One line, without a period at the end."""
    details: str = ""
    """More sentences for docs/optimization.md."""
    approximate_if: Callable[[Any], bool] = lambda _: False
    """Values whose kind is approximate, whatever `kind` says."""
    auto: AutoRule | None = "everywhere"
    """Where `auto` turns it on; None if the key does not accept `auto`."""
    auto_value: Any = True
    """What `auto` becomes where it turns the optimization on."""
    lossless: Any = None
    """The value in the preset `lossless`; None if the preset leaves it off. The preset `auto` sets the same keys."""
    needs: tuple[Need, ...] = ()
    conflicts: Mapping[str, str] = field(default_factory=dict)
    """Other optimizations that take the place of this one, each with the reason to skip this one."""

    def kind_of(self, value: Any) -> OptimizationKind:
        """The kind of setting this optimization to `value`."""
        return "approximate" if self.approximate_if(value) else self.kind

    def words(self, value: Any) -> str:
        """How summaries and errors name the optimization with its `value`."""
        return self.name if value in (True, AUTO) else f"{self.name}={getattr(value, 'name', value)}"

    def reason_to_skip(self, value: Any, applied: Collection[str], wanted_later: Collection[str]) -> str | None:
        """Why it does not go with the other optimizations, or None.

        Args:
            applied: names of those that were applied before it.
            wanted_later: names of those that will be tried after it.
        """
        for need in self.needs:
            if need.applies_to(value) and need.name not in applied:
                return f"it needs {need.name}"
        reasons = (reason for name, reason in self.conflicts.items() if name in applied or name in wanted_later)
        return next(reasons, None)

    @property
    def off_value(self) -> bool | None:
        """The value that turns it off: None if the key accepts null, else False."""
        return None if type(None) in get_args(field_types(OptimizationConfig)[self.name]) else False

    def settled(self, has_gpu: bool) -> Any:
        """The value that `auto` means on a device."""
        is_on = self.auto == "everywhere" or self.auto == ("gpu" if has_gpu else "cpu")
        return self.auto_value if is_on else self.off_value


_HOIST = "hoist_constants"

_DECLARED = (
    Optimization(
        name=_HOIST,
        kind="exact",
        doc="compute what is the same at every step once per batch",
        details="These are the prompt's projection, the RoPE tables, and the embeddings of timestep, guidance and "
        "pooled prompt.",
        lossless=True,
    ),
    Optimization(
        name="no_matmul_workspace",
        kind="lossless",
        doc="multiply matrices with cuBLASLt kernels that need no workspace, in the whole process",
        details="These kernels have no counters that must be cleared before each product. The first model of a process "
        "decides; `CUBLASLT_WORKSPACE_SIZE` in the environment takes precedence. NVIDIA GPUs only.",
        auto="gpu",
        lossless=AUTO,
    ),
    Optimization(
        name="attention_backend",
        kind="lossless",
        doc="the attention kernel: a backend name of diffusers, or `fastest` to measure them on this device",
        details="`fastest` measures PyTorch's kernels (cuDNN, flash) for the model's shape, and FlashAttention 3 and 4 "
        "where `flash_attn_interface` or `flash_attn.cute` is installed. It leaves out a kernel that fails or gives "
        "other values, and the summary says why. The user's cache directory keeps the measurements. SageAttention "
        "quantizes, so that it is approximate.",
        approximate_if=lambda value: "sage" in value,
        auto_value=FASTEST,
        lossless=FASTEST,
    ),
    Optimization(
        name="modulation_table",
        kind="lossless",
        doc="compute the modulations of all steps in one matrix product per layer",
        details="The GPU reads 3.2 billion weights once, not at every step.",
        lossless=True,
        needs=(Need(name=_HOIST, because="computes modulations outside the blocks"),),
    ),
    Optimization(
        name="fused_kernels",
        kind="lossless",
        doc="run the transformer blocks with fused Triton kernels",
        details="One kernel does residual, gate, LayerNorm and modulation. One does QK-norm, RoPE and the joint layout "
        "of text and image. Queries, keys and values are one matrix product. GELU is part of the matrix product before "
        "it. The last product of a single block runs in two parts, without a copy of both inputs.",
        lossless=True,
        needs=(Need(name=_HOIST, because="replaces the blocks"),),
    ),
    Optimization(
        name="fp8_linears",
        kind="approximate",
        doc="run the linear layers of the blocks in FP8",
        details="The format is `float8_e4m3fn`. Weights have one scale per row, activations one per token, computed by "
        "the kernel that produces them. Hopper and newer; saves 10 GB.",
        needs=(
            Need(name=_HOIST, because="works on the blocks one by one"),
            Need(name="fused_kernels", because="quantizes activations in the fused kernels"),
        ),
    ),
    Optimization(
        name="fp8_attention",
        kind="approximate",
        doc="run attention in FP8 with cuDNN",
        details="Its output goes into the next matrix product without a conversion. Needs "
        "`pip install 'fluxexp[fp8]'` and a Hopper GPU.",
        needs=(
            Need(name=_HOIST, because="works on the blocks one by one"),
            Need(name="fp8_linears", because="hands FP8 rows to the next linear layer"),
        ),
    ),
    Optimization(
        name="fused_vae",
        kind="lossless",
        doc="run the VAE in channels-last layout, with fused kernels for GroupNorm and SiLU",
        details="The kernels add the biases of the convolutions, too. The attention in the middle is two matrix "
        "products around a softmax. Applies to encoding and decoding.",
        auto="gpu",
        lossless=True,
    ),
    Optimization(
        name="text_encoder_weights",
        kind="approximate",
        doc="store the weights of T5 in `int8` or `fp8`, and dequantize them when they are used",
        details="Half the memory; see [memory.md](memory.md).",
        auto=None,
    ),
    Optimization(
        name="offload",
        kind="exact",
        doc="which weights leave the GPU while it does not need them; `auto`: the fastest policy that fits, per GPU",
        details="See [memory.md](memory.md).",
        auto="gpu",
        auto_value=AUTO,  # each rank chooses: free memory differs between GPUs, and pixels do not depend on the policy
        lossless=AUTO,
        needs=(Need(name=_HOIST, because="streams blocks one by one", values=("group", "sequential")),),
    ),
    Optimization(
        name="onednn_linears",
        kind="lossless",
        doc="run the linear layers of a float32 model on a CPU with oneDNN",
        details="With `fused_kernels`, GELU is part of the product. Twice as fast where PyTorch would use MKL on a CPU "
        "that is not made by Intel.",
        auto="cpu",
        lossless=AUTO,
    ),
    Optimization(
        name="compile_blocks",
        kind="lossless",
        doc="compile the transformer blocks with `torch.compile`; `fused_kernels` replaces it",
        auto="gpu",  # a CPU needs a C++ compiler for it, and to compile takes longer than a short run
        conflicts={"fused_kernels": "fused_kernels leave nothing to compile"},
    ),
    Optimization(
        name="cuda_graph",
        kind="exact",
        doc="capture the step of each shape, and the text encoders that stay on the GPU, as CUDA graphs",
        details="A replay is one launch instead of some thousand, so that a slow host does not delay the GPU.",
        auto="gpu",
        lossless=True,
        needs=(Need(name=_HOIST, because="captures the denoiser's own functions"),),
    ),
    Optimization(
        name="compile_vae",
        kind="lossless",
        doc="compile the VAE decoder with `torch.compile`; `fused_vae` replaces it",
        auto="gpu",
        conflicts={
            "vae_tiling": "vae_tiling decodes tiles of many shapes",
            "fused_vae": "fused_vae leaves nothing to compile",
        },
    ),
    Optimization(
        name="vae_tiling",
        kind="approximate",
        doc="decode in tiles of 512 x 512 pixels: less memory, slightly different pixels",
    ),
    Optimization(
        name="text_cache",
        kind="lossless",
        doc="keep encoded prompts on disk, at most 8 GiB, for all runs with the same text encoders",
        details="The files are in the user's cache directory. Prompts are encoded one by one, whatever the batch size.",
        auto="gpu",  # the text encoders of models that run on a CPU are small
        lossless=AUTO,
    ),
    Optimization(
        name="step_cache",
        kind="approximate",
        doc="skip most of the transformer at some of the steps",
        details="See [caches.md](caches.md).",
        auto=None,
        needs=(Need(name=_HOIST, because="works on the blocks one by one"),),
    ),
)

OPTIMIZATIONS: Mapping[str, Optimization] = {declared.name: declared for declared in _DECLARED}
"""By name, in the order in which they are applied."""

if list(OPTIMIZATIONS) != [spec.name for spec in fields(OptimizationConfig)]:
    raise TypeError("OptimizationConfig must have a field for each declared optimization, in the order of declaration")

NONE = OptimizationConfig(**{name: declared.off_value for name, declared in OPTIMIZATIONS.items()})  # type: ignore[arg-type]
"""Every optimization is off."""
