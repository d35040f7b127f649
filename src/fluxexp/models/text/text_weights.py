"""T5's weights in eight bits, made whole when they are used: half the memory, and they come and go in half the time.

Weights alone are rounded, by output row (as LLM.int8's and torchao's weight-only kinds do); products are the model's.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812

WeightFormat = Literal["fp8", "int8"]

_LARGEST = {"fp8": 448.0, "int8": 127.0}
_DTYPES = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
_TINY = 1e-12


class WeightOnlyLinear(torch.nn.Module):
    """A `torch.nn.Linear` whose weight is stored in eight bits."""

    weight = None
    """Not a tensor: T5 gives what goes into a layer the dtype of its weight where it has one."""

    def __init__(self, linear: torch.nn.Linear, kind: WeightFormat) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(dim=1, keepdim=True).clamp(min=_TINY) / _LARGEST[kind]
        values = weight / scales
        self.values: torch.Tensor
        self.register_buffer("values", (values.round() if kind == "int8" else values).to(_DTYPES[kind]))
        self.scales: torch.Tensor
        self.register_buffer("scales", scales)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in features) to (..., out features), in the dtype of `x`."""
        return F.linear(x, (self.values.float() * self.scales).to(x.dtype), self.bias)


def store_in_eight_bits(module: torch.nn.Module, kind: WeightFormat, device: torch.device) -> None:
    """Put a `WeightOnlyLinear` in place of each `Linear` below `module`, computed on `device`, kept where it was."""
    for name, child in list(module.named_children()):
        if isinstance(child, torch.nn.Linear):
            home = child.weight.device
            setattr(module, name, WeightOnlyLinear(child.to(device), kind).to(home))
        else:
            store_in_eight_bits(child, kind, device)
