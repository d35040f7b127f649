"""FP8 linear layers. Weights are quantized once, per output row; activations when they are made, per token.

Both are float8_e4m3fn with float32 scales. The row-wise scaling is that of torchao's
`Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())`; the matrix product is PyTorch's `_scaled_mm`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Self

import torch

from fluxexp.models.kernels.fused_ops import Activations, quantize_rows
from fluxexp.models.kernels.host_memory import HostCopies

_MULTIPLE = 16
"""Both dimensions of a weight must be multiples of this: `_scaled_mm` accepts no others."""


class Fp8Linear(torch.nn.Module):
    """A `torch.nn.Linear` in FP8.

    Args:
        weight: (out features, in features), float8_e4m3fn.
        scales: (1, out features), float32.
        bias: (out features,), or None.
        dtype: of the output: that of the original weight.
    """

    def __init__(
        self, weight: torch.Tensor, scales: torch.Tensor, bias: torch.nn.Parameter | None, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.original: torch.Tensor | None = None
        """The weight before it was quantized, in host memory: a LoRA is added to it. None: it was not kept, or a
        checkpoint has the weight in FP8."""
        self._copies: HostCopies | None = None
        """The memory that `original` is in."""
        self.dtype = dtype
        self.out_features, self.in_features = weight.shape
        self.weight: torch.Tensor
        self.register_buffer("weight", weight)
        self.scales: torch.Tensor
        # One scale per output row is one per column of the product: (1, out features), as the product takes it.
        self.register_buffer("scales", scales)
        self.bias = bias

    @classmethod
    def quantized(cls, linear: torch.nn.Linear) -> Self:
        """Quantize the weight of a layer."""
        rows = quantize_rows(linear.weight.detach()[None])
        return cls(rows.values[0], rows.scales[0].t().contiguous(), linear.bias, linear.weight.dtype)

    @classmethod
    def empty(cls, linear: torch.nn.Linear, dtype: torch.dtype) -> Self:
        """A layer of the sizes of `linear` on the meta device, for weights that are stored in FP8."""
        weight = torch.empty(linear.weight.shape, dtype=torch.float8_e4m3fn, device="meta")
        scales = torch.empty(1, linear.out_features, device="meta")
        return cls(weight, scales, linear.bias, dtype)

    @classmethod
    def merged(cls, layers: Sequence[Self]) -> Self:
        """One layer with the output features of all `layers`, in their order."""
        weight = torch.cat([layer.weight.view(torch.uint8) for layer in layers]).view(torch.float8_e4m3fn)
        scales = torch.cat([layer.scales for layer in layers], dim=1)
        biases: list[torch.Tensor] = [layer.bias for layer in layers if layer.bias is not None]
        bias = torch.nn.Parameter(torch.cat(biases), requires_grad=False) if biases else None
        return cls(weight, scales, bias, layers[0].dtype)

    def dequantized(self) -> torch.nn.Linear:
        """A layer with the weight of this one in `dtype`, and its bias."""
        weight = (self.weight.float() * self.scales.t()).to(self.dtype)
        linear = torch.nn.Linear(self.in_features, self.out_features, device="meta")
        linear.weight = torch.nn.Parameter(weight, requires_grad=False)
        linear.bias = self.bias  # type: ignore[assignment]
        return linear

    def forward(self, x: Activations, columns: slice = slice(None), *, has_bias: bool = True) -> torch.Tensor:
        """Compute x @ weight[:, columns].T + bias.

        Args:
            x: (B, tokens, features), quantized or not.
            columns: the input features of the weight that `x` has: a part of a layer's input can be multiplied alone.
            has_bias: whether to add the bias.

        Returns:
            (B, tokens, out features) in `dtype`.
        """
        if isinstance(x, torch.Tensor):
            x = quantize_rows(x)
        values, scales = x.values.flatten(0, 1), x.scales.flatten(0, 1)
        shape, weight = (*x.values.shape[:2], self.out_features), self.weight[:, columns]
        bias = self.bias if has_bias else None
        if values.is_cuda:
            # The second operand is column-major, as the FP8 kernels need it: the transpose is a view, not a copy.
            return torch._scaled_mm(
                values.contiguous(),
                weight.t(),
                scale_a=scales.contiguous(),
                scale_b=self.scales,
                bias=bias,
                out_dtype=self.dtype,
                use_fast_accum=True,
            ).view(shape)
        product = (values.float() @ weight.float().t()) * scales * self.scales
        if bias is not None:
            product = product + bias.float()
        return product.to(self.dtype).view(shape)

    def keep_original(self, copies: HostCopies, number: int) -> None:
        """Let `original` be copy `number` of `copies`."""
        self._copies, self.original = copies, copies.tensors[number]

    def requantize(self, weight: torch.Tensor) -> None:
        """Replace the weight in place: captured graphs use the new one. `weight` is in the original dtype.

        A weight in host memory has its new values when the device has done the work that is queued on its stream.
        """
        quantized = quantize_rows(weight[None])
        self.weight.copy_(quantized.values[0], non_blocking=True)
        self.scales.copy_(quantized.scales[0].t(), non_blocking=True)


def has_fp8(device: torch.device) -> bool:
    """Whether the device has FP8 matrix products with a scale per row: Hopper GPUs and newer. A CPU emulates them."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0)


def quantize_linears(module: torch.nn.Module, *, keeps_original: bool = False) -> None:
    """Replace each `Linear` below `module` by an `Fp8Linear`, in place.

    Layers inside norms and of IP-Adapters stay, because their inputs have few rows, and so do layers whose sizes FP8
    does not support.

    Args:
        module: with weights.
        keeps_original: keep `Fp8Linear.original`, of all layers in one block of host memory.
    """
    found = list(_replaceable(module))
    copies = None
    if keeps_original and found:
        weights = [getattr(parent, name).weight for parent, name in found]
        copies = HostCopies(weights, is_pinned=weights[0].is_cuda)
        del weights
    # One layer at a time, so that at most one is on the device twice.
    for number, (parent, name) in enumerate(found):
        layer = Fp8Linear.quantized(getattr(parent, name))
        if copies is not None:
            layer.keep_original(copies, number)
        setattr(parent, name, layer)


def _replaceable(module: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str]]:
    """The layers that are replaced: their parents, and their names there."""
    for name, child in module.named_children():
        if type(child) is torch.nn.Linear:
            if is_quantizable(child):
                yield module, name
        elif not _is_left_out(name):
            yield from _replaceable(child)


def quantizable_linears(transformer: torch.nn.Module) -> list[tuple[str, torch.nn.Linear]]:
    """The layers of a transformer, with their names, that `quantize_linears` replaces when it gets its blocks."""
    return [
        (name, layer)
        for name, layer in transformer.named_modules()
        if type(layer) is torch.nn.Linear
        and "transformer_blocks" in name
        and not any(_is_left_out(part) for part in name.split("."))
        and is_quantizable(layer)
    ]


def _is_left_out(name: str) -> bool:
    return name.startswith("norm") or name == "processor"


def is_quantizable(linear: torch.nn.Linear) -> bool:
    """Whether the FP8 matrix product accepts the sizes of this layer."""
    return linear.in_features % _MULTIPLE == 0 and linear.out_features % _MULTIPLE == 0
