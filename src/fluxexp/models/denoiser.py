"""The transformer over one batch's steps: as the library calls it, or taken apart with constants computed once.

A denoiser is prepared for a batch and its schedule, then asked step by step for the velocity. Knows no scheduler: what
is done with the velocity is the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812

from fluxexp.models.blocks import Attend, DoubleBlock, Rope, SingleBlock, library_attention
from fluxexp.models.cuda_graph import Replayed
from fluxexp.models.fp8_attention import Fp8Attention
from fluxexp.models.fused_blocks import FusedAttention, FusedDoubleBlock, FusedSingleBlock
from fluxexp.models.fused_ops import Residual, modulated_norm

StepFunction = Callable[[int, torch.Tensor], torch.Tensor]
"""From a step's number and the tokens that the transformer sees (B, image tokens, channels) to the velocity."""

_TABLE_ROWS = 128
"""Rows (steps times images) of modulations held at a time: 2 MiB each for FLUX.1."""


class Denoiser(Protocol):
    """What the denoising loop calls."""

    def prepare(self, inputs: Mapping[str, Any], timesteps: torch.Tensor) -> StepFunction:
        """Get ready for one batch.

        Args:
            inputs: what `FluxTransformer2DModel.forward` takes besides tokens and timestep.
            timesteps: of all steps, in [0, 1000].
        """
        ...

    def free_memory(self) -> None:
        """Give back what is kept for shapes that may come again."""
        ...


class LibraryDenoiser:
    """The library's own forward pass at every step."""

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer

    def prepare(self, inputs: Mapping[str, Any], timesteps: torch.Tensor) -> StepFunction:
        """See `Denoiser`."""
        batch = len(inputs["encoder_hidden_states"])
        dtype = inputs["encoder_hidden_states"].dtype

        def step(number: int, tokens: torch.Tensor) -> torch.Tensor:
            timestep = _fractions(timesteps[number], batch, dtype)
            velocity: torch.Tensor = self._transformer(
                hidden_states=tokens, timestep=timestep, return_dict=False, **inputs
            )[0]
            return velocity

        return step

    def free_memory(self) -> None:
        """Nothing is kept."""


class HoistedDenoiser:
    """The library's layers in the library's order, but what stays the same over the steps is computed once a batch.

    That is: the prompt's projection, RoPE's tables, and the embeddings of timestep, guidance and pooled prompt. In
    eager mode the velocity has the library's bits, unless one of these is set:

    Attributes:
        attend: the attention kernel, None for the backend that the library is set to.
        has_table: modulations of many steps are one matrix product.
        is_fused: blocks are `fused_blocks.py`'s.
        attends_in_fp8: and their attention is in eight bits.
        is_replayed: steps are CUDA graphs.
    """

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer
        self.attend: Attend | None = None
        self.has_table = False
        self.is_fused = False
        self.attends_in_fp8 = False
        self.is_replayed = False
        self.doubles: Sequence[Any] = []
        self.singles: Sequence[Any] = []
        self.rebuild()

    def rebuild(self) -> None:
        """Make the blocks anew, after an attribute changed."""
        doubles, singles = self._transformer.transformer_blocks, self._transformer.single_transformer_blocks
        if self.is_fused:
            attend = self.attend or library_attention(doubles[0].attn.processor)
            attention = FusedAttention(attend, Fp8Attention() if self.attends_in_fp8 else None)
            self.doubles = [FusedDoubleBlock(block, attention) for block in doubles]
            self.singles = [FusedSingleBlock(block, attention) for block in singles]
        else:
            self.doubles = [DoubleBlock(block, self.attend) for block in doubles]
            self.singles = [SingleBlock(block, self.attend) for block in singles]
        self._replayed = Replayed(self._velocity) if self.is_replayed else None

    def free_memory(self) -> None:
        """Give back what is kept for shapes that may come again."""
        if self._replayed is not None:
            self._replayed.forget()

    @property
    def _modulations(self) -> list[torch.nn.Linear]:
        """The layers that make modulations of an embedding: image and text of each double block, each single one, last
        the output's.
        """
        transformer = self._transformer
        doubles = [n.linear for block in transformer.transformer_blocks for n in (block.norm1, block.norm1_context)]
        singles = [block.norm.linear for block in transformer.single_transformer_blocks]
        return [*doubles, *singles, transformer.norm_out.linear]

    def prepare(self, inputs: Mapping[str, Any], timesteps: torch.Tensor) -> StepFunction:
        """See `Denoiser`."""
        transformer = self._transformer
        text = transformer.context_embedder(inputs["encoder_hidden_states"])
        rope = transformer.pos_embed(torch.cat((inputs["txt_ids"], inputs["img_ids"]), dim=0))
        modulations = self._modulations_of(inputs, timesteps, len(text), text.dtype)
        velocity: Callable[..., torch.Tensor] = self._replayed or self._velocity

        def step(number: int, tokens: torch.Tensor) -> torch.Tensor:
            return velocity(tokens, text, *rope, modulations(number))

        return step

    def _velocity(
        self, tokens: torch.Tensor, text: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, flat: torch.Tensor
    ) -> torch.Tensor:
        """One step.

        Args:
            tokens: what the transformer sees (B, image tokens, channels).
            text: projected (B, text tokens, width).
            cosines: of RoPE, as `sines`, (text and image tokens, head dimension).
            flat: all modulations side by side (B, sum of their widths).
        """
        transformer, rope = self._transformer, (cosines, sines)
        mods = iter(torch.split(flat, [layer.out_features for layer in self._modulations], dim=1))
        image = transformer.x_embedder(tokens)
        if self.is_fused:
            return self._fused(Residual(image), Residual(text), mods, rope)
        for double in self.doubles:
            image, text = double(image, text, next(mods), next(mods), rope)
        stream = torch.cat([text, image], dim=1)
        for single in self.singles:
            stream = single(stream, next(mods), rope)
        scale, shift = next(mods).chunk(2, dim=1)
        normed = transformer.norm_out.norm(stream[:, text.shape[1] :]) * (1 + scale)[:, None, :] + shift[:, None, :]
        return transformer.proj_out(normed)  # type: ignore[no-any-return]

    def _fused(self, image: Residual, text: Residual, mods: Iterator[torch.Tensor], rope: Rope) -> torch.Tensor:
        for double in self.doubles:
            image, text = double(image, text, next(mods), next(mods), rope)
        stream = Residual(torch.cat([text.settled(), image.settled()], dim=1))
        for single in self.singles:
            stream = single(stream, next(mods), rope)
        scale, shift = next(mods).chunk(2, dim=1)
        norm = self._transformer.norm_out.norm
        _, normed = modulated_norm(stream, shift, scale, norm.eps, is_quantised=False)
        assert isinstance(normed, torch.Tensor)
        return self._transformer.proj_out(normed[:, text.tokens.shape[1] :])  # type: ignore[no-any-return]

    def _modulations_of(
        self, inputs: Mapping[str, Any], timesteps: torch.Tensor, batch: int, dtype: torch.dtype
    ) -> Callable[[int], torch.Tensor]:
        """All modulations of a step, side by side in the order of `_modulations`."""
        if self.has_table:
            return _Table(self._embedding, self._modulations, inputs, timesteps, batch, dtype)
        embeddings = [self._embedding(inputs, _fractions(t, batch, dtype)) for t in timesteps]
        layers = self._modulations

        def of_step(number: int) -> torch.Tensor:
            activated = F.silu(embeddings[number])
            return torch.cat([layer(activated) for layer in layers], dim=1)

        return of_step

    def _embedding(self, inputs: Mapping[str, Any], fractions: torch.Tensor) -> torch.Tensor:
        """Of timestep, guidance and pooled prompt: (rows, width). `fractions` are timesteps in [0, 1], one a row."""
        pooled = inputs["pooled_projections"]
        repeats = len(fractions) // len(pooled)
        rows = [fractions * 1000]
        if inputs["guidance"] is not None:
            rows.append((inputs["guidance"].to(fractions.dtype) * 1000).repeat(repeats))
        return self._transformer.time_text_embed(*rows, pooled.repeat(repeats, 1))  # type: ignore[no-any-return]


class _Table:
    """Modulations of many steps by one matrix product a layer, instead of one a step: each reads all its weights."""

    def __init__(
        self,
        embedding: Callable[[Mapping[str, Any], torch.Tensor], torch.Tensor],
        layers: Sequence[torch.nn.Linear],
        inputs: Mapping[str, Any],
        timesteps: torch.Tensor,
        batch: int,
        dtype: torch.dtype,
    ) -> None:
        fractions = torch.cat([_fractions(t, batch, dtype) for t in timesteps])
        activated = F.silu(embedding(inputs, fractions))
        self._activated = activated.view(len(timesteps), batch, -1)
        self._layers = layers
        self._steps = max(1, _TABLE_ROWS // batch)
        self._first: int | None = None
        self._table = activated  # of the steps from `_first` on: (steps, B, sum of widths)

    def __call__(self, number: int) -> torch.Tensor:
        first = number - number % self._steps
        if first != self._first:
            rows = self._activated[first : first + self._steps]
            self._table = torch.cat([layer(rows) for layer in self._layers], dim=2)
            self._first = first
        return self._table[number - first]


def _fractions(timestep: torch.Tensor, batch: int, dtype: torch.dtype) -> torch.Tensor:
    """One step's timestep in [0, 1] for each image, rounded as the library's pipelines round it."""
    return timestep.expand(batch).to(dtype) / 1000
