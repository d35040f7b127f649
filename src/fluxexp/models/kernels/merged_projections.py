"""Merges the projections to queries, keys and values into one linear layer."""

from __future__ import annotations

from typing import Any

import torch

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
        layers = [getattr(attn, name, None) for name in names]
        if None in layers:  # single blocks have no separate layers for the text
            continue
        weight, bias = (torch.cat([getattr(layer, part) for layer in layers]) for part in ("weight", "bias"))
        # On the meta device the layer allocates no weights. They would be replaced immediately.
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        layer.weight, layer.bias = (torch.nn.Parameter(tensor, requires_grad=False) for tensor in (weight, bias))
        setattr(attn, merged, layer)
        for name in names:
            delattr(attn, name)
