"""Float32 linear layers on a CPU with oneDNN kernels, which apply GELU in the same pass.

By default PyTorch uses MKL, which only uses AVX2 on processors not made by Intel. oneDNN checks what the processor
supports, and is more than twice as fast with AVX-512. Weights are not changed.
"""

from __future__ import annotations

import torch


def why_unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why linear layers of `dtype` on `device` cannot use these kernels, or need not; None if they can."""
    if device.type != "cpu":
        return "oneDNN only runs on CPUs"
    if dtype != torch.float32:
        return f"it is only for float32: for {str(dtype).removeprefix('torch.')} PyTorch uses oneDNN already, if it can"
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not has_onednn or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return "this build of PyTorch has no oneDNN"
    return None


class OneDnnLinear(torch.nn.Linear):
    """A float32 linear layer on a CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x @ weight.T + bias, for x of shape (..., in features)."""
        return linear(x, self.weight, self.bias)

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        """GELU of the layer's output, with the tanh approximation."""
        return linear(x, self.weight, self.bias, gelu=True)


def use_onednn(module: torch.nn.Module) -> None:
    """Let oneDNN compute all plain linear layers of `module`. Changes their class in place and copies nothing."""
    for layer in module.modules():
        if type(layer) is torch.nn.Linear:
            layer.__class__ = OneDnnLinear


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, gelu: bool = False) -> torch.Tensor:
    """x @ weight.T + bias of float32 tensors on a CPU.

    Args:
        x: (..., in features).
        weight: (out features, in features).
        bias: (out features,).
        gelu: whether to apply GELU, with the tanh approximation.

    Returns:
        (..., out features).
    """
    # torch.compile creates this operation itself, for weights that it has packed in its own layout, and would mistake
    # this call for one of those. A custom operator hides it.
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
