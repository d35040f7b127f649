"""Merges the projections to queries, keys and values into one linear layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from fluxexp.models.kernels.fp8_linear import Fp8Linear

_MERGED = {"to_qkv": ("to_q", "to_k", "to_v"), "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj")}


def merged_rows(attn: Any, name: str) -> tuple[str, slice] | None:
    """Name of the merged layer that has the rows of layer `name`, and these rows; None if `name` is not merged."""
    for merged, names in _MERGED.items():
        if name in names and hasattr(attn, merged):
            rows = getattr(attn, merged).out_features // len(names)
            first = names.index(name) * rows
            return merged, slice(first, first + rows)
    return None


@torch.no_grad()
def merge_projections(attn: Any) -> None:
    """Replace the layers `to_q`, `to_k` and `to_v` of an attention module by `to_qkv`; likewise those of the text.

    One product with three times the columns fills a GPU better. The library's `fuse_projections` uses the same names
    but keeps the old layers, so that their weights take memory twice; this function deletes them.

    Args:
        attn: a `FluxAttention`. Each new weight is (3 * width, width): rows of queries, keys, values.
    """
    for merged, names in _MERGED.items():
        layers: list[Any] = [getattr(attn, name, None) for name in names]
        if None in layers:  # single blocks have no separate layers for the text
            continue
        if all(isinstance(layer, Fp8Linear) for layer in layers):  # a checkpoint has them in FP8
            setattr(attn, merged, Fp8Linear.merged(layers))
            _delete(attn, names)
            continue
        layers = [layer.dequantized() if isinstance(layer, Fp8Linear) else layer for layer in layers]
        weight, bias = (torch.cat([getattr(layer, part) for layer in layers]) for part in ("weight", "bias"))
        # On the meta device the layer allocates no weights. They would be replaced immediately.
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        layer.weight, layer.bias = (torch.nn.Parameter(tensor, requires_grad=False) for tensor in (weight, bias))
        setattr(attn, merged, layer)
        _delete(attn, names)


def _delete(attn: Any, names: Iterable[str]) -> None:
    for name in names:
        delattr(attn, name)
