"""Linear layers in eight bits: weights quantized once by output row, activations by token as they are made.

Both in float8_e4m3fn with float32 scales; products are summed in float32. Row-wise scaling is that of torchao's
`Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())`, by PyTorch's own matrix product.
"""

from __future__ import annotations

import torch

from fluxexp.models.kernels.fused_ops import Activations, quantize_rows

_MULTIPLE = 16
"""Of both dimensions: what the matrix product takes."""


class Fp8Linear(torch.nn.Module):
    """A `torch.nn.Linear` in eight bits; gives the dtype that it had."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        quantized = quantize_rows(linear.weight.detach()[None])
        self.dtype = linear.weight.dtype
        self.out_features, self.in_features = linear.weight.shape
        self.weight: torch.Tensor
        self.register_buffer("weight", quantized.values[0])
        self.scales: torch.Tensor
        self.register_buffer("scales", quantized.scales[0].t().contiguous())
        self.bias = linear.bias

    def forward(self, x: Activations, columns: slice = slice(None), *, has_bias: bool = True) -> torch.Tensor:
        """(B, tokens, out features).

        Args:
            columns: of the weight: the part that is to be multiplied with `x`, which is as wide.
            has_bias: whether to add the bias.
        """
        if isinstance(x, torch.Tensor):
            x = quantize_rows(x)
        values, scales = x.values.flatten(0, 1), x.scales.flatten(0, 1)
        shape, weight = (*x.values.shape[:2], self.out_features), self.weight[:, columns]
        bias = self.bias if has_bias else None
        if values.is_cuda:
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


def has_fp8(device: torch.device) -> bool:
    """Whether the device multiplies in eight bits with a scale for each row: Hopper and later. CPUs emulate it."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0)


def quantize_linears(module: torch.nn.Module) -> None:
    """Put an `Fp8Linear` in place of each `Linear` below `module`, but for those of norms: their inputs are few rows.

    One by one, so that no more than one layer is there twice. Layers that the matrix product does not take stay.
    """
    for name, child in list(module.named_children()):
        if type(child) is torch.nn.Linear:
            if is_quantizable(child):
                setattr(module, name, Fp8Linear(child))
        elif not name.startswith("norm"):
            quantize_linears(child)


def is_quantizable(linear: torch.nn.Linear) -> bool:
    """Whether the matrix product takes it in eight bits."""
    return linear.in_features % _MULTIPLE == 0 and linear.out_features % _MULTIPLE == 0
