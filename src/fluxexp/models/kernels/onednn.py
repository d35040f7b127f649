"""Linear layers by oneDNN's kernels in float32 on a CPU, with GELU in the product's own last pass.

PyTorch's own choice there is MKL, which keeps to AVX2 on processors that are not Intel's. oneDNN asks what the
processor can do, and is more than twice as fast where that is AVX-512. Weights stay as they are. Knows no model.
"""

from __future__ import annotations

import torch


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why linear layers of `dtype` on `device` cannot be oneDNN's, or need not be asked to; None if they can."""
    if device.type != "cpu":
        return "oneDNN is for CPUs"
    if dtype != torch.float32:
        return f"it is for float32: {str(dtype).removeprefix('torch.')} is oneDNN's already, where it knows it"
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not has_onednn or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return "this build of PyTorch has no oneDNN"
    return None


class OneDnnLinear(torch.nn.Linear):
    """A linear layer of float32 weights on a CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x @ weight.T + bias for x of (..., in features)."""
        return linear(x, self.weight, self.bias)

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        """GELU of it, by tanh's approximation."""
        return linear(x, self.weight, self.bias, gelu=True)


def use_onednn(module: torch.nn.Module) -> None:
    """Have all plain linear layers of `module` computed by oneDNN; nothing is copied."""
    for layer in module.modules():
        if type(layer) is torch.nn.Linear:
            layer.__class__ = OneDnnLinear


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, gelu: bool = False) -> torch.Tensor:
    """x @ weight.T + bias, of float32 tensors on a CPU; with `gelu` its GELU, by tanh's approximation.

    Args:
        x: (..., in features); weight: (out features, in features); bias: (out features,).
    """
    # The compiler takes PyTorch's operation for one of its own making, with weights in a layout that these do not have.
    compute = _opaque if torch.compiler.is_compiling() else _linear
    return compute(x, weight, bias, gelu)


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gelu: bool) -> torch.Tensor:
    activation, algorithm = ("gelu", "tanh") if gelu else ("none", "")
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], algorithm)
    return product


_opaque = torch.library.custom_op("fluxexp::onednn_linear", _linear, mutates_args=())


@_opaque.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, gelu: bool) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))
