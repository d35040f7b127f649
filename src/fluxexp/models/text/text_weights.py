"""8-bit weights for T5, dequantized when they are used. They take half the memory, and half the time to stream.

Only weights are quantized, with a scale per output row, as in torchao's weight-only formats. The matrix products keep
the model's dtype.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812

WeightFormat = Literal["fp8", "int8"]

_MAX_VALUES = {"fp8": 448.0, "int8": 127.0}
_DTYPES = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
_TINY = 1e-12


class WeightOnlyLinear(torch.nn.Module):
    """A `torch.nn.Linear` whose weight is stored in 8 bits."""

    weight = None
    """Not a tensor: T5 casts the input of a layer to the dtype of its weight, if the weight is a tensor."""

    def __init__(self, linear: torch.nn.Linear, kind: WeightFormat) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(dim=1, keepdim=True).clamp(min=_TINY) / _MAX_VALUES[kind]
        values = weight / scales
        self.values: torch.Tensor
        self.register_buffer("values", (values.round() if kind == "int8" else values).to(_DTYPES[kind]))
        self.scales: torch.Tensor
        self.register_buffer("scales", scales)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute (..., out features) from `x` (..., in features), in the dtype of `x`.

        The weight is dequantized in float32, and rounded once to that dtype.
        """
        return F.linear(x, (self.values.float() * self.scales).to(x.dtype), self.bias)


def store_in_eight_bits(module: torch.nn.Module, kind: WeightFormat, device: torch.device) -> None:
    """Replace each `Linear` below `module` by a `WeightOnlyLinear`.

    Args:
        module: changed in place.
        kind: format of the weights.
        device: where weights are quantized; the result goes back to the device of the layer.
    """
    for name, child in list(module.named_children()):
        if isinstance(child, torch.nn.Linear):
            home = child.weight.device
            setattr(module, name, WeightOnlyLinear(child.to(device), kind).to(home))
        else:
            store_in_eight_bits(child, kind, device)
