"""FP8 attention: the kernel of cuDNN on a GPU, an emulation on a CPU.

Queries, keys and values are cast to float8_e4m3fn without a scale. RMS norm and RoPE leave queries and keys near 1. The
result is a weighted mean of the values, so its magnitude is at most the largest of theirs: this gives its scale before
it is computed. Each image has its own scale, and its own launch, because cuDNN takes one output scale per launch. So an
image does not depend on the other images of its batch.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from fluxexp.models.kernels.fused_ops import Quantized

_FP8_MAX = 448.0
"""The largest value of float8_e4m3fn."""
_SOFTMAX_SCALE = 256.0
"""Factor of the softmax weights when they are cast to FP8. They are at most 1, and most are so small that FP8
would round them to 0. With 256, the largest stays below 448."""
_TINY = 1e-12


def why_unavailable(device: torch.device) -> str | None:
    """Why the device cannot run FP8 attention; None if it can. A CPU emulates it."""
    if device.type != "cuda":
        return None
    if importlib.util.find_spec("cudnn") is None:
        return "the package nvidia-cudnn-frontend is not installed: run pip install 'fluxexp[fp8]'"
    if torch.cuda.get_device_capability(device)[0] != 9:
        return "it needs a Hopper GPU"
    return None


class Fp8Attention:
    """Softmax attention over float8_e4m3fn tensors. It keeps one cuDNN plan per shape. Not thread-safe."""

    def __init__(self) -> None:
        self._plans: dict[torch.Size, _Plan] = {}
        self._handle: Any = None

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, amax: torch.Tensor) -> Quantized:
        """Attend in each head.

        Args:
            query: float8_e4m3fn (B, tokens, heads, head dimension), contiguous; `key` and `value` likewise.
            amax: float32 (B,), the largest magnitude of each image's values before the cast to FP8.

        Returns:
            (B, tokens, heads * head dimension). All rows of an image have the same scale.
        """
        row_scales = (amax.clamp(min=_TINY) / _FP8_MAX).view(-1, 1, 1)
        out = torch.empty_like(query)
        if query.is_cuda:
            # Four equal values per image, because cuDNN may assume that a tensor starts at a multiple of 16 bytes.
            scales = (1 / row_scales).view(-1, 1).repeat(1, 4)
            for image in range(len(query)):
                own = slice(image, image + 1)
                self._on_gpu(query[own], key[own], value[own], scales[image, :1], out[own])
        else:
            out.copy_(_on_cpu(query, key, value, 1 / row_scales))
        return Quantized(out.flatten(2, 3), row_scales.expand(-1, out.shape[1], 1))

    def _on_gpu(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: torch.Tensor, out: torch.Tensor
    ) -> None:
        import cudnn

        if self._handle is None:
            self._handle = cudnn.create_handle()
        if query.shape not in self._plans:
            self._plans[query.shape] = _build_plan(query.shape, self._handle)
        plan = self._plans[query.shape]
        # cuDNN also writes the largest magnitudes of the softmax weights and of the result. Nothing reads them.
        amaxes = query.new_empty(2, 1, 1, 1, 1, dtype=torch.float32)
        tensors = [query, key, value, scale, *_constants(query.device), out, *amaxes]
        workspace = query.new_empty(max(1, plan.graph.get_workspace_size()), dtype=torch.uint8)
        # PyTorch does not know of this launch: cuDNN must use the current stream, also while a CUDA graph is captured.
        cudnn.set_stream(self._handle, torch.cuda.current_stream(query.device).cuda_stream)
        plan.graph.execute(dict(zip(plan.tensors, tensors, strict=True)), workspace, handle=self._handle)


@dataclass(frozen=True, slots=True)
class _Plan:
    graph: Any
    tensors: tuple[Any, ...]
    """The graph's inputs and outputs: query, key, value, scale of the result, 1, scale of the softmax weights and its
    inverse, result, and the two largest magnitudes."""


def _build_plan(shape: torch.Size, handle: Any) -> _Plan:
    """Build a cuDNN plan for tensors (B, tokens, heads, head dimension)."""
    import cudnn

    batch, tokens, heads, dim = shape
    # cuDNN wants dimensions in the order batch, heads, tokens, channels. Memory stays as `qk_norm_rope` wrote it, with
    # the heads of a token side by side: the strides describe that, so no copy is needed.
    dims, strides = (batch, heads, tokens, dim), (tokens * heads * dim, dim, heads * dim, 1)
    fp8, single = cudnn.data_type.FP8_E4M3, cudnn.data_type.FLOAT
    graph = cudnn.pygraph(io_data_type=fp8, intermediate_data_type=single, compute_data_type=single, handle=handle)
    query, key, value = (graph.tensor(name=n, dim=dims, stride=strides, data_type=fp8) for n in ("q", "k", "v"))
    scale, one, softmax_scale, softmax_descale = (
        graph.tensor(name=n, dim=(1, 1, 1, 1), stride=(1, 1, 1, 1), data_type=single)
        for n in ("scale", "one", "up", "down")
    )
    out, _, *amaxes = graph.sdpa_fp8(
        q=query,
        k=key,
        v=value,
        descale_q=one,
        descale_k=one,
        descale_v=one,
        descale_s=softmax_descale,
        scale_s=softmax_scale,
        scale_o=scale,
        is_inference=True,
        attn_scale=dim**-0.5,
        use_causal_mask=False,
        name="attention",
    )
    out.set_output(True).set_dim(dims).set_stride(strides).set_data_type(fp8)
    for amax in amaxes:
        amax.set_output(True).set_dim((1, 1, 1, 1)).set_stride((1, 1, 1, 1)).set_data_type(single)
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A])
    graph.check_support()
    graph.build_plans()
    return _Plan(graph, (query, key, value, scale, one, softmax_scale, softmax_descale, out, *amaxes))


_known_constants: dict[torch.device, tuple[torch.Tensor, ...]] = {}


def _constants(device: torch.device) -> tuple[torch.Tensor, ...]:
    """1, the scale of the softmax weights and its inverse. Made once, because a copy from the host would wait."""
    if device not in _known_constants:
        values = (1.0, _SOFTMAX_SCALE, 1.0 / _SOFTMAX_SCALE)
        _known_constants[device] = tuple(torch.full((1,), value, device=device) for value in values)
    return _known_constants[device]


def _on_cpu(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    query, key, value = (x.float().transpose(1, 2) for x in (query, key, value))
    out = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    return (out * scale.unsqueeze(-1)).clamp(-_FP8_MAX, _FP8_MAX).to(torch.float8_e4m3fn)
