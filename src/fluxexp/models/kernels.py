"""Operations that the compiler is to take as they are, because a library has a better kernel for them.

Each is a custom operation with a plain definition for CPUs; on a GPU the same arithmetic by a fused kernel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812


@torch.library.custom_op("fluxexp::linear_gelu", mutates_args=())
def linear_gelu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """gelu(x @ weight.T + bias), by tanh's approximation; on a GPU in the matrix product's own last pass.

    There the activation sees the sum before it is rounded: one rounding less than two operations have. The compiler
    would take the two apart again, hence an operation that it cannot look into.

    Args:
        x: (..., in features); weight: (out features, in features); bias: (out features,).
    """
    if not x.is_cuda:
        return F.gelu(F.linear(x, weight, bias), approximate="tanh")
    flat = torch._addmm_activation(bias, x.reshape(-1, x.shape[-1]), weight.t(), use_gelu=True)
    return flat.view(*x.shape[:-1], weight.shape[0])


@linear_gelu.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))
