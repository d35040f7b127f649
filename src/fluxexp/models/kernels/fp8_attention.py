"""Attention in eight bits: cuDNN's on a GPU, an emulation of it on a CPU.

Queries and keys are cast as they are: their norms and RoPE leave them near one, where float8_e4m3fn is as precise as it
gets. So are values. The result's scale comes from the largest value, which no mean of values exceeds.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from fluxexp.models.kernels.fused_ops import Quantized

_FP8_MAX = 448.0
_WEIGHTS_SCALE = 256.0
"""Of the softmax's weights before they are summed up to one: they are at most 1, most of them far below."""
_TINY = 1e-12


def why_not(device: torch.device) -> str | None:
    """Why the device cannot do it, None if it can."""
    if device.type != "cuda":
        return None
    if importlib.util.find_spec("cudnn") is None:
        return "the package nvidia-cudnn-frontend is not installed (pip install 'fluxexp[fp8]')"
    if torch.cuda.get_device_capability(device)[0] != 9:
        return "it is written for Hopper GPUs"
    return None


class Fp8Attention:
    """Softmax attention over e4m3 tensors. Not thread-safe."""

    def __init__(self) -> None:
        self._plans: dict[torch.Size, _Plan] = {}
        self._handle: Any = None

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, amax: torch.Tensor) -> Quantized:
        """Attention of each head.

        Args:
            query: float8_e4m3fn (B, tokens, heads, head dimension), contiguous, as `key` and `value`.
            amax: float32 (1,), the largest magnitude of `value`.

        Returns:
            (B, tokens, heads * head dimension).
        """
        amax = amax.clamp(min=_TINY)
        scale = _FP8_MAX / amax
        out = self._on_gpu(query, key, value, scale) if query.is_cuda else _on_cpu(query, key, value, scale)
        return Quantized(out.flatten(2, 3), (amax / _FP8_MAX).expand(*out.shape[:2], 1))

    def _on_gpu(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        import cudnn

        if self._handle is None:
            self._handle = cudnn.create_handle()
        if query.shape not in self._plans:
            self._plans[query.shape] = _planned(query.shape, self._handle)
        plan = self._plans[query.shape]
        out = torch.empty_like(query)
        peaks = query.new_empty(2, 1, 1, 1, 1, dtype=torch.float32)
        tensors = [query, key, value, scale, *_constants(query.device), out, *peaks]
        workspace = query.new_empty(max(1, plan.graph.get_workspace_size()), dtype=torch.uint8)
        cudnn.set_stream(self._handle, torch.cuda.current_stream(query.device).cuda_stream)
        plan.graph.execute(dict(zip(plan.places, tensors, strict=True)), workspace, handle=self._handle)
        return out


@dataclass(frozen=True, slots=True)
class _Plan:
    graph: Any
    places: tuple[Any, ...]
    """Of query, key, value, the result's scale, one, the weights' scale and its inverse, result and two peaks."""


def _planned(shape: torch.Size, handle: Any) -> _Plan:
    """cuDNN's plan for tensors (B, tokens, heads, head dimension)."""
    import cudnn

    batch, tokens, heads, dim = shape
    dims, strides = (batch, heads, tokens, dim), (tokens * heads * dim, dim, heads * dim, 1)
    fp8, single = cudnn.data_type.FP8_E4M3, cudnn.data_type.FLOAT
    graph = cudnn.pygraph(io_data_type=fp8, intermediate_data_type=single, compute_data_type=single, handle=handle)
    query, key, value = (graph.tensor(name=n, dim=dims, stride=strides, data_type=fp8) for n in ("q", "k", "v"))
    scale, one, up, down = (
        graph.tensor(name=n, dim=(1, 1, 1, 1), stride=(1, 1, 1, 1), data_type=single)
        for n in ("scale", "one", "up", "down")
    )
    out, _, *peaks = graph.sdpa_fp8(
        q=query,
        k=key,
        v=value,
        descale_q=one,
        descale_k=one,
        descale_v=one,
        descale_s=down,
        scale_s=up,
        scale_o=scale,
        is_inference=True,
        attn_scale=dim**-0.5,
        use_causal_mask=False,
        name="attention",
    )
    out.set_output(True).set_dim(dims).set_stride(strides).set_data_type(fp8)
    for peak in peaks:
        peak.set_output(True).set_dim((1, 1, 1, 1)).set_stride((1, 1, 1, 1)).set_data_type(single)
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A])
    graph.check_support()
    graph.build_plans()
    return _Plan(graph, (query, key, value, scale, one, up, down, out, *peaks))


_known_constants: dict[torch.device, tuple[torch.Tensor, ...]] = {}


def _constants(device: torch.device) -> tuple[torch.Tensor, ...]:
    """One, the weights' scale and its inverse, made once: to copy them from the host would stop it."""
    if device not in _known_constants:
        values = (1.0, _WEIGHTS_SCALE, 1.0 / _WEIGHTS_SCALE)
        _known_constants[device] = tuple(torch.full((1,), value, device=device) for value in values)
    return _known_constants[device]


def _on_cpu(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    query, key, value = (x.float().transpose(1, 2) for x in (query, key, value))
    out = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    return (out * scale).clamp(-_FP8_MAX, _FP8_MAX).to(torch.float8_e4m3fn)
