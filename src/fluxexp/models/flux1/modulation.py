"""Modulations of the blocks: shift, scale and gate, made from an embedding of timestep, guidance and pooled prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

TABLE_ROWS = 128
"""Rows (steps times images) of modulations in memory at the same time. A row of FLUX.1 takes 2 MiB."""


def modulation_layers(block: Any) -> list[torch.nn.Linear]:
    """The layers that make a block's modulations: of image and text in a double block, one in a single block."""
    if hasattr(block, "norm1_context"):
        return [block.norm1.linear, block.norm1_context.linear]
    return [block.norm.linear]


class ModulationTable:
    """Computes the modulations of many steps with one matrix product per layer.

    The products have few rows, so reading the weights (3.2 billion for FLUX.1) takes most of their time. Without the
    table the GPU would read them at every step.

    Args:
        embedding: from `inputs` and timesteps in [0, 1], float (steps * batch,), to embeddings (steps * batch, width).
        layers: call the layers of `modulation_layers`, in the order of the blocks.
        inputs: what `FluxTransformer2DModel.forward` takes besides tokens and timestep.
        timesteps: of all steps, in [0, 1000].
        batch: images in the batch.
        dtype: of the embeddings.
    """

    def __init__(
        self,
        embedding: Callable[[Mapping[str, Any], torch.Tensor], torch.Tensor],
        layers: Sequence[Callable[[torch.Tensor], torch.Tensor]],
        inputs: Mapping[str, Any],
        timesteps: torch.Tensor,
        batch: int,
        dtype: torch.dtype,
    ) -> None:
        rows = torch.cat([as_fractions(t, batch, dtype) for t in timesteps])
        activated = F.silu(embedding(inputs, rows))
        self._activated = activated.view(len(timesteps), batch, -1)
        self._layers = layers
        self._steps = max(1, TABLE_ROWS // batch)
        self._first: int | None = None
        self._table = activated  # once filled, the steps from `_first` on: (steps, B, sum of widths)

    def __call__(self, number: int) -> torch.Tensor:
        """The modulations of step `number`, side by side in the order of the layers: (B, sum of their widths)."""
        first = number - number % self._steps
        if first != self._first:
            rows = self._activated[first : first + self._steps]
            self._table = torch.cat([layer(rows) for layer in self._layers], dim=2)
            self._first = first
        return self._table[number - first]


def modulations_of_steps(
    network: Any,
    layers: Sequence[Callable[[torch.Tensor], torch.Tensor]],
    inputs: Mapping[str, Any],
    timesteps: torch.Tensor,
    dtype: torch.dtype,
    *,
    has_table: bool,
) -> Callable[[int], torch.Tensor]:
    """All modulations of a step, side by side in the order of `layers`: (B, sum of their widths).

    Args:
        network: with `time_text_embed`: a transformer, or a ControlNet.
        layers: see `ModulationTable`.
        inputs: `guidance` and `pooled_projections` of the batch.
        timesteps: of all steps, in [0, 1000].
        dtype: of the embeddings.
        has_table: whether one matrix product per layer computes many steps.
    """
    batch = len(inputs["pooled_projections"])

    def embedding(inputs: Mapping[str, Any], fractions: torch.Tensor) -> torch.Tensor:
        return _embedding(network, inputs, fractions)

    if has_table:
        return ModulationTable(embedding, layers, inputs, timesteps, batch, dtype)
    embeddings = [embedding(inputs, as_fractions(t, batch, dtype)) for t in timesteps]

    def of_step(number: int) -> torch.Tensor:
        activated = F.silu(embeddings[number])
        return torch.cat([layer(activated) for layer in layers], dim=1)

    return of_step


def _embedding(network: Any, inputs: Mapping[str, Any], fractions: torch.Tensor) -> torch.Tensor:
    """Embedding of timestep, guidance and pooled prompt: (rows, width).

    Args:
        network: see `modulations_of_steps`; `inputs` likewise.
        fractions: timesteps in [0, 1], one per row; the rows of a step are the images of the batch.
    """
    pooled = inputs["pooled_projections"]
    repeats = len(fractions) // len(pooled)
    rows = [fractions * 1000]
    if inputs["guidance"] is not None:
        rows.append((inputs["guidance"].to(fractions.dtype) * 1000).repeat(repeats))
    return network.time_text_embed(*rows, pooled.repeat(repeats, 1))  # type: ignore[no-any-return]


def as_fractions(timestep: torch.Tensor, batch: int, dtype: torch.dtype) -> torch.Tensor:
    """One step's timestep in [0, 1] for each image: (batch,). Rounds as the library's pipelines do, before dividing."""
    return timestep.expand(batch).to(dtype) / 1000
