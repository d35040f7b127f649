"""The options that a denoiser is built from."""

from __future__ import annotations

from dataclasses import dataclass

from fluxexp.models.context_parallel.context import Context
from fluxexp.models.kernels.attention_types import Attend
from fluxexp.models.offload.weight_streaming import BlockStream
from fluxexp.models.step_cache.step_caches import StepCache


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiserOptions:
    """How a `HoistedDenoiser` computes. With the defaults the velocity has the bits of the library's forward pass."""

    attend: Attend | None = None
    """The attention kernel; None: the backend that the library is set to."""
    has_modulation_table: bool = False
    """Whether the modulations of many steps are one matrix product."""
    is_fused: bool = False
    """Whether the blocks are those of `fused_blocks.py`. Their projections must be merged (`merged_projections.py`)."""
    has_fp8_attention: bool = False
    """Whether attention runs in FP8. Only with fused blocks."""
    has_cuda_graph: bool = False
    """Whether each shape is captured as a CUDA graph and replayed."""
    is_compiled: bool = False
    """Whether torch.compile compiles the blocks. They then only see whole batches: each size costs a compilation."""
    step_cache: StepCache | None = None
    """Skips blocks at some of the steps."""
    context: Context | None = None
    """Set if other ranks hold the rest of each image's tokens. Inputs and outputs are whole on all of them."""
    streams: tuple[BlockStream, BlockStream] | None = None
    """Bring the weights of the blocks, and of the layers of `modulation_layers`, to the device when they are used."""

    @property
    def is_exact(self) -> bool:
        """Whether all kernels are those of the library, so that the velocity has its bits on one rank."""
        return self.attend is None and not (self.has_modulation_table or self.is_fused or self.is_compiled)
