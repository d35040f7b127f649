"""Applies LoRAs without merging them, so that the images of a batch can have different ones.

Each layer adds `scale * B @ (A @ x)` of its own image to the rows of that image. This works on the layers of
`FluxTransformer2DModel` where they are called as modules: not in fused kernels, captured graphs or compiled code.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from fluxexp.errors import SampleError
from fluxexp.models.lora.lora_tensors import LoraTensors, LowRank

RowLoras = Sequence[Sequence[tuple[LoraTensors, float]]]
"""For each row of the transformer's inputs, the LoRAs of its image with their scales. Each image has one row, or two if
one call makes both passes of a step."""


@dataclass(frozen=True, slots=True)
class _Terms:
    """The changes of one layer, for all images of a batch. Images with a smaller rank are padded with zeros."""

    down: torch.Tensor
    """(B, rank, inputs)."""
    up: torch.Tensor
    """(B, rank, outputs), with the scale."""
    bias: torch.Tensor | None
    """(B, 1, outputs)."""

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """What is added for inputs (B, rows, inputs): (B, rows, outputs)."""
        used = x[..., : self.down.shape[2]]  # a LoRA for FLUX.1-dev knows only the latents of Fill
        added = torch.bmm(torch.bmm(used, self.down.transpose(1, 2)), self.up)
        return added if self.bias is None else added + self.bias


@contextmanager
def applied(transformer: torch.nn.Module, rows: RowLoras, device: torch.device) -> Generator[None]:
    """Let the layers of `transformer` add the LoRAs of each image, while the block runs.

    Args:
        transformer: its weights may be on the host, if they are streamed.
        rows: for each row of the transformer's inputs.
        device: where the layers compute.

    Raises:
        SampleError: a LoRA cannot be applied without merging it.
    """
    if not any(rows):
        yield
        return
    if any(tensors.norms for loras in rows for tensors, _ in loras):
        raise SampleError("a LoRA with norms (Control LoRA) replaces weights, so lora.mixing=true cannot apply it")
    handles = []
    try:
        for name in _names(rows):
            layer = transformer.get_submodule(name)
            if not isinstance(layer, torch.nn.Linear):
                raise SampleError(f"lora.mixing=true cannot apply a LoRA to {name}, a {type(layer).__name__}")
            terms = _terms(layer, [_of_layer(loras, name) for loras in rows], device)
            handles.append(layer.register_forward_hook(_hook(terms, len(rows), is_of_tokens=_is_of_tokens(name))))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _names(rows: RowLoras) -> Sequence[str]:
    prefix = "transformer."
    names = (name for loras in rows for tensors, _ in loras for name in tensors.layers)
    return list(dict.fromkeys(name.removeprefix(prefix) for name in names if name.startswith(prefix)))


def _of_layer(loras: Sequence[tuple[LoraTensors, float]], name: str) -> list[tuple[LowRank, float]]:
    found: list[tuple[LowRank, float]] = []
    for tensors, scale in loras:
        layers: Mapping[str, LowRank] = tensors.layers
        if low_rank := layers.get(f"transformer.{name}"):
            found.append((low_rank, scale * low_rank.scale))
    return found


def _terms(layer: torch.nn.Linear, rows: Sequence[Sequence[tuple[LowRank, float]]], device: torch.device) -> _Terms:
    rank = max(sum(len(low_rank.down) for low_rank, _ in row) for row in rows)
    inputs = max(low_rank.down.shape[1] for row in rows for low_rank, _ in row)
    down = torch.zeros(len(rows), rank, inputs)
    up, bias = torch.zeros(len(rows), rank, layer.out_features), torch.zeros(len(rows), 1, layer.out_features)
    has_bias = False
    for number, row in enumerate(rows):
        first = 0
        for low_rank, scale in row:
            own = slice(first, first + len(low_rank.down))
            first = own.stop
            down[number, own, : low_rank.down.shape[1]] = low_rank.down
            up[number, own] = scale * low_rank.up.float().t()
            if low_rank.bias is not None:
                bias[number] += scale * low_rank.bias.float()
                has_bias = True
    dtype = layer.weight.dtype
    return _Terms(down.to(device, dtype), up.to(device, dtype), bias.to(device, dtype) if has_bias else None)


def _is_of_tokens(name: str) -> bool:
    """Whether a layer's inputs are tokens, (B, tokens, features). The others get embeddings, one row per image."""
    return "time_text_embed" not in name and ".norm" not in name and not name.startswith("norm_out")


def _hook(terms: _Terms, batch: int, *, is_of_tokens: bool) -> Callable[..., torch.Tensor]:
    def add(_: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        x = inputs[0]
        if is_of_tokens:
            return output + terms.of(x)
        # The images of a step are next to each other: (steps * B, features) or (steps, B, features).
        per_image = x.reshape(-1, batch, x.shape[-1]).transpose(0, 1)
        return output + terms.of(per_image).transpose(0, 1).reshape(output.shape)

    return add
