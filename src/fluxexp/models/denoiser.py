"""The transformer over one batch's steps: as the library calls it, or taken apart with constants computed once.

A denoiser is prepared for a batch and its schedule, then asked step by step for the velocity. Knows no scheduler: what
is done with the velocity is the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812

from fluxexp.models.blocks import Attend, DoubleBlock, MlpKernels, Rope, SingleBlock
from fluxexp.models.step_cache import StepCache

StepFunction = Callable[[int, torch.Tensor], torch.Tensor]
"""From a step's number and the tokens that the transformer sees (B, image tokens, channels) to the velocity."""

_TABLE_ROWS = 128
"""Rows (steps times images) of modulations held at a time: 2 MiB each for FLUX.1."""


class Denoiser(Protocol):
    """What the denoising loop calls."""

    computed_steps: list[int]
    """Of each image of the batch that was prepared last, the steps that went through the whole transformer."""

    def prepare(self, inputs: Mapping[str, Any], timesteps: torch.Tensor, left_out: int = 0) -> StepFunction:
        """Get ready for one batch.

        Args:
            inputs: what `FluxTransformer2DModel.forward` takes besides tokens and timestep.
            timesteps: of all steps, in [0, 1000].
            left_out: steps of the schedule that come before them and are not made.
        """
        ...


class LibraryDenoiser:
    """The library's own forward pass at every step."""

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer
        self.computed_steps: list[int] = []

    def prepare(self, inputs: Mapping[str, Any], timesteps: torch.Tensor, left_out: int = 0) -> StepFunction:
        """See `Denoiser`."""
        batch = len(inputs["encoder_hidden_states"])
        self.computed_steps = [len(timesteps)] * batch
        dtype = inputs["encoder_hidden_states"].dtype

        def step(number: int, tokens: torch.Tensor) -> torch.Tensor:
            timestep = _fractions(timesteps[number], batch, dtype)
            velocity: torch.Tensor = self._transformer(
                hidden_states=tokens, timestep=timestep, return_dict=False, **inputs
            )[0]
            return velocity

        return step


class HoistedDenoiser:
    """The library's layers in the library's order, but what stays the same over the steps is computed once a batch.

    That is: the prompt's projection, RoPE's tables, and the embeddings of timestep, guidance and pooled prompt. In
    eager mode the velocity has the library's bits. With `has_table` modulations of many steps are one matrix product.
    """

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer
        self.attend: Attend | None = None
        """None: by the backend that the library is set to."""
        self.mlp = MlpKernels()
        self.has_table = False
        self.cache: StepCache | None = None
        self.is_compiled = False
        """Compiled blocks know one size of batch: parts of a batch are not computed by themselves."""
        self.computed_steps: list[int] = []
        self.doubles: list[DoubleBlock] = []
        self.singles: list[SingleBlock] = []
        self.rebuild()

    def rebuild(self) -> None:
        """Make the blocks anew, after `attend` or `mlp` changed."""
        transformer = self._transformer
        self.doubles = [DoubleBlock(block, self.attend, self.mlp) for block in transformer.transformer_blocks]
        self.singles = [SingleBlock(block, self.attend, self.mlp) for block in transformer.single_transformer_blocks]

    @property
    def modulations(self) -> list[torch.nn.Linear]:
        """The layers that make modulations of an embedding: image and text of each double block, each single one, last
        the output's.
        """
        doubles = [norm.linear for block in self.doubles for norm in (block.block.norm1, block.block.norm1_context)]
        return [*doubles, *(block.block.norm.linear for block in self.singles), self._transformer.norm_out.linear]

    def prepare(self, inputs: Mapping[str, Any], timesteps: torch.Tensor, left_out: int = 0) -> StepFunction:
        """See `Denoiser`."""
        transformer = self._transformer
        text = transformer.context_embedder(inputs["encoder_hidden_states"])
        rope = transformer.pos_embed(torch.cat((inputs["txt_ids"], inputs["img_ids"]), dim=0))
        modulations = self._modulations(inputs, timesteps, len(text), text.dtype)
        cached = None if self.cache is None else self.cache.begin(len(text), len(timesteps), left_out)
        self.computed_steps = [len(timesteps)] * len(text) if cached is None else cached.computed_steps

        def step(number: int, tokens: torch.Tensor) -> torch.Tensor:
            mods = modulations(number)
            blocks = _Blocks(self.doubles, self.singles, text, mods, rope, self.is_compiled)
            image = transformer.x_embedder(tokens)
            image = blocks.others(*blocks.first(image)) if cached is None else cached(number, image, blocks)
            return self._output(image, mods[-1])

        return step

    def _output(self, image: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        scale, shift = modulation.chunk(2, dim=1)
        normed = self._transformer.norm_out.norm(image) * (1 + scale)[:, None, :] + shift[:, None, :]
        return self._transformer.proj_out(normed)  # type: ignore[no-any-return]

    def _modulations(
        self, inputs: Mapping[str, Any], timesteps: torch.Tensor, batch: int, dtype: torch.dtype
    ) -> Callable[[int], Sequence[torch.Tensor]]:
        """All modulations of a step, in the order of `modulations`."""
        if self.has_table:
            return _Table(self._embedding, self.modulations, inputs, timesteps, batch, dtype)
        embeddings = [self._embedding(inputs, _fractions(t, batch, dtype)) for t in timesteps]
        layers = self.modulations

        def of_step(number: int) -> list[torch.Tensor]:
            activated = F.silu(embeddings[number])
            return [layer(activated) for layer in layers]

        return of_step

    def _embedding(self, inputs: Mapping[str, Any], fractions: torch.Tensor) -> torch.Tensor:
        """Of timestep, guidance and pooled prompt: (rows, width). `fractions` are timesteps in [0, 1], one a row."""
        pooled = inputs["pooled_projections"]
        repeats = len(fractions) // len(pooled)
        rows = [fractions * 1000]
        if inputs["guidance"] is not None:
            rows.append((inputs["guidance"].to(fractions.dtype) * 1000).repeat(repeats))
        return self._transformer.time_text_embed(*rows, pooled.repeat(repeats, 1))  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class _Blocks:
    """All blocks at one step, in the two parts that step caches know (`step_cache.Blocks`)."""

    doubles: Sequence[DoubleBlock]
    singles: Sequence[SingleBlock]
    text: torch.Tensor
    mods: Sequence[torch.Tensor]
    """Of all blocks in their order, as `HoistedDenoiser.modulations` makes them."""
    rope: Rope
    is_compiled: bool

    def first(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Image and text tokens behind the first block."""
        first: tuple[torch.Tensor, torch.Tensor] = self.doubles[0](image, self.text, *self.mods[:2], self.rope)
        return first

    def others(self, image: torch.Tensor, text: torch.Tensor, rows: Sequence[int] | None = None) -> torch.Tensor:
        """Image tokens behind the last block; those of `rows` of the batch alone, where they are given."""
        if rows is None:
            return self._others(image, text, self.mods)
        index = torch.tensor(rows, device=image.device)
        if self.is_compiled:  # another size of batch would cost another compilation
            return self._others(image, text, self.mods)[index]
        return self._others(image[index], text[index], [mod[index] for mod in self.mods])

    def _others(self, image: torch.Tensor, text: torch.Tensor, mods: Sequence[torch.Tensor]) -> torch.Tensor:
        remaining = iter(mods[2:])
        for double in self.doubles[1:]:
            image, text = double(image, text, next(remaining), next(remaining), self.rope)
        stream = torch.cat([text, image], dim=1)
        for single in self.singles:
            stream = single(stream, next(remaining), self.rope)
        return stream[:, text.shape[1] :]


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
        self._tables: list[torch.Tensor] = []

    def __call__(self, number: int) -> list[torch.Tensor]:
        first = number - number % self._steps
        if first != self._first:
            self._tables = []  # freed before the next ones are made
            rows = self._activated[first : first + self._steps]
            self._tables = [layer(rows) for layer in self._layers]
            self._first = first
        return [table[number - first] for table in self._tables]


def _fractions(timestep: torch.Tensor, batch: int, dtype: torch.dtype) -> torch.Tensor:
    """One step's timestep in [0, 1] for each image, rounded as the library's pipelines round it."""
    return timestep.expand(batch).to(dtype) / 1000
