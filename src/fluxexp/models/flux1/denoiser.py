"""The transformer over one batch's steps: as the library calls it, or taken apart with constants computed once.

A denoiser is prepared for a batch and its schedule, then asked step by step for the velocity. Knows no scheduler: what
is done with the velocity is the caller's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812

from fluxexp.errors import ModelError
from fluxexp.models.context_parallel.context import Context
from fluxexp.models.flux1.blocks import Attend, DoubleBlock, Rope, SingleBlock, library_attention
from fluxexp.models.flux1.fused_blocks import FusedAttention, FusedDoubleBlock, FusedSingleBlock
from fluxexp.models.flux1.modulation import ModulationTable, as_fractions, modulation_layers
from fluxexp.models.kernels.cuda_graph import GraphedFunction
from fluxexp.models.kernels.fp8_attention import Fp8Attention
from fluxexp.models.kernels.fused_ops import Residual, modulated_norm
from fluxexp.models.kernels.side_stream import SideStream
from fluxexp.models.offload.weight_streaming import BlockStream
from fluxexp.models.step_cache.step_caches import StepCache

StepFunction = Callable[[int, torch.Tensor], torch.Tensor]
"""From a step's number and the tokens that the transformer sees (B, image tokens, channels) to the velocity."""


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

    def free_memory(self) -> None:
        """Give back what is kept for shapes that may come again."""
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
            timestep = as_fractions(timesteps[number], batch, dtype)
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
        is_compiled: blocks are compiled, for whole batches: parts of one are not computed by themselves.
        cache: leaves steps out.
        context: other ranks hold the rest of each image's tokens. What goes in and comes out is whole on all of them.
        streams: blocks, and the layers of `modulation_layers`, that come to the device when they are used.
    """

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer
        self.attend: Attend | None = None
        self.has_table = False
        self.is_fused = False
        self.attends_in_fp8 = False
        self.uses_cuda_graph = False
        self.is_compiled = False
        self.cache: StepCache | None = None
        self.context: Context | None = None
        self.streams: tuple[BlockStream, BlockStream] | None = None
        self.computed_steps: list[int] = []
        self.doubles: Sequence[Any] = []
        self.singles: Sequence[Any] = []
        self.rebuild()

    def rebuild(self) -> None:
        """Make the blocks anew, after an attribute changed."""
        doubles, singles = self._transformer.transformer_blocks, self._transformer.single_transformer_blocks
        attend = self.attend
        if self.is_fused or self.context is not None:
            attend = attend or library_attention(doubles[0].attn.processor)
        if self.context is not None:
            assert attend is not None
            attend = self.context.attention(attend)
        if self.is_fused:
            assert attend is not None
            attention = FusedAttention(attend, Fp8Attention() if self.attends_in_fp8 else None)
            # Recorded, two streams cost nothing; one GPU by itself gains nothing by them.
            has_two = self.uses_cuda_graph and self.context is not None
            beside = SideStream(self._transformer.device if has_two else None)
            self.doubles = [FusedDoubleBlock(block, attention) for block in doubles]
            self.singles = [FusedSingleBlock(block, attention, beside) for block in singles]
        else:
            self.doubles = [DoubleBlock(block, attend) for block in doubles]
            self.singles = [SingleBlock(block, attend) for block in singles]
        if self.streams is not None:
            around = self.streams[0].around
            both = [around(number, block) for number, block in enumerate((*self.doubles, *self.singles))]
            self.doubles, self.singles = both[: len(doubles)], both[len(doubles) :]
        self._velocity_at = self._repeated(self._velocity)
        self._first_at, self._others_at = self._repeated(self._first), self._repeated(self._others)

    def _repeated(self, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        if not self.uses_cuda_graph:
            return function
        context = self.context
        if context is None:
            return GraphedFunction(function)

        def settled(*inputs: torch.Tensor) -> torch.Tensor:
            try:
                return function(*inputs)
            except BaseException:
                context.settle()  # a recording that fails can be ended only so
                raise

        return GraphedFunction(settled, lambda: context.arrangement)

    def enable_context_parallel(self, context: Context | None) -> None:
        """Hold only a part of each image's tokens from now on; with None, all of them.

        Raises:
            ModelError: what was done to the model does not allow it.
        """
        if context is not None:
            if self.attends_in_fp8:
                raise ModelError("optimization.fp8_attention cannot be shared out to ranks: use fp8_linears alone")
            context.check(self._transformer.config.num_attention_heads)
        was_compiled = self.is_compiled
        self.free_memory()
        if self.context is not None:
            self.context.disconnect()
        self.context = context
        self.rebuild()
        if was_compiled:
            self.compile_blocks()

    def compile_blocks(self) -> None:
        """Compile each block, when it first meets a shape."""
        for block in (*self.doubles, *self.singles):
            block.compile(fullgraph=True, dynamic=False)
        self.is_compiled = True

    def free_memory(self) -> None:
        """Give back what is kept for shapes that may come again."""
        for function in (self._velocity_at, self._first_at, self._others_at):
            if isinstance(function, GraphedFunction):
                function.forget()

    @property
    def _modulations(self) -> list[torch.nn.Linear]:
        """The layers that make modulations of an embedding: those of the blocks, last the output's."""
        transformer = self._transformer
        blocks = (*transformer.transformer_blocks, *transformer.single_transformer_blocks)
        return [*(layer for block in blocks for layer in modulation_layers(block)), transformer.norm_out.linear]

    @property
    def _making_modulations(self) -> list[Callable[[torch.Tensor], torch.Tensor]]:
        """Their calls."""
        layers = self._modulations
        if self.streams is None:
            return list(layers)
        around = self.streams[1].around
        return [*(around(number, layer) for number, layer in enumerate(layers[:-1])), layers[-1]]

    def prepare(self, inputs: Mapping[str, Any], timesteps: torch.Tensor, left_out: int = 0) -> StepFunction:
        """See `Denoiser`."""
        transformer = self._transformer
        text = transformer.context_embedder(inputs["encoder_hidden_states"])
        rope = transformer.pos_embed(torch.cat((inputs["txt_ids"], inputs["img_ids"]), dim=0))
        modulations = self._modulations_of(inputs, timesteps, len(text), text.dtype)
        context = self.context
        if context is not None:
            text_tokens = text.shape[1]
            context.arrange(text_tokens, len(inputs["img_ids"]))
            if context.is_full:  # on all ranks, as they saw the same batches
                self.free_memory()
                context.disconnect()
            if self.is_fused:
                config = transformer.config
                context.connect(len(text), config.num_attention_heads, config.attention_head_dim, text.dtype)
            text, rope = context.own_text(text), context.own_rope(rope, text_tokens)
        cached = None if self.cache is None else self.cache.begin(len(text), len(timesteps), left_out)
        self.computed_steps = [len(timesteps)] * len(text) if cached is None else cached.computed_steps

        def step(number: int, tokens: torch.Tensor) -> torch.Tensor:
            if cached is None:
                return self._velocity_at(tokens, text, *rope, modulations(number))
            flat = modulations(number)
            blocks = _Blocks(self._first_at, self._others_at, self.is_compiled, text, flat, rope, context)
            image = cached(number, transformer.x_embedder(tokens), blocks)
            return self._output(self._entered(image), 0, self._split(flat)[-1])

        if context is None:
            return step
        return lambda number, tokens: context.gathered(step(number, context.own_image(tokens)))

    # The arguments of the next three: `text` projected (B, text tokens, width); `cosines` and `sines` of RoPE (text and
    # image tokens, head dimension); `flat`, all modulations side by side (B, sum of their widths).

    def _velocity(
        self, tokens: torch.Tensor, text: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, flat: torch.Tensor
    ) -> torch.Tensor:
        """One step, of what the transformer sees (B, image tokens, channels)."""
        mods, rope = iter(self._split(flat)), (cosines, sines)
        image, own_text = self._entered(self._transformer.x_embedder(tokens)), self._entered(text)
        image, own_text = self._through(self.doubles, image, own_text, mods, rope)
        stream = self._singly(image, own_text, mods, rope)
        return self._output(stream, text.shape[1], next(mods))

    def _first(
        self, image: torch.Tensor, text: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, flat: torch.Tensor
    ) -> torch.Tensor:
        """Text and image tokens behind the first block, as one tensor."""
        mods = iter(self._split(flat))
        streams = self._through(self.doubles[:1], self._entered(image), self._entered(text), mods, (cosines, sines))
        return torch.cat([_settled(stream) for stream in reversed(streams)], dim=1)

    def _others(
        self, image: torch.Tensor, text: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, flat: torch.Tensor
    ) -> torch.Tensor:
        """Image tokens behind the last block, of both behind the first."""
        mods, rope = iter(self._split(flat)[2:]), (cosines, sines)
        streams = self._through(self.doubles[1:], self._entered(image), self._entered(text), mods, rope)
        return _settled(self._singly(*streams, mods, rope))[:, text.shape[1] :].contiguous()

    def _split(self, flat: torch.Tensor) -> Sequence[torch.Tensor]:
        return torch.split(flat, [layer.out_features for layer in self._modulations], dim=1)

    def _entered(self, tokens: torch.Tensor) -> Any:
        """Tokens as the blocks take them."""
        return Residual(tokens) if self.is_fused else tokens

    def _through(
        self, doubles: Sequence[Any], image: Any, text: Any, mods: Iterator[torch.Tensor], rope: Rope
    ) -> tuple[Any, Any]:
        for double in doubles:
            image, text = double(image, text, next(mods), next(mods), rope)
        return image, text

    def _singly(self, image: Any, text: Any, mods: Iterator[torch.Tensor], rope: Rope) -> Any:
        stream = self._entered(torch.cat([_settled(text), _settled(image)], dim=1))
        for single in self.singles:
            stream = single(stream, next(mods), rope)
        return stream

    def _output(self, stream: Any, first: int, modulation: torch.Tensor) -> torch.Tensor:
        """Velocity of the tokens from the `first` on."""
        scale, shift = modulation.chunk(2, dim=1)
        norm = self._transformer.norm_out.norm
        if isinstance(stream, Residual):
            _, normed = modulated_norm(stream, shift, scale, norm.eps, is_quantised=False)
            assert isinstance(normed, torch.Tensor)
            normed = normed[:, first:]
        else:
            normed = norm(stream[:, first:]) * (1 + scale)[:, None, :] + shift[:, None, :]
        return self._transformer.proj_out(normed)  # type: ignore[no-any-return]

    def _modulations_of(
        self, inputs: Mapping[str, Any], timesteps: torch.Tensor, batch: int, dtype: torch.dtype
    ) -> Callable[[int], torch.Tensor]:
        """All modulations of a step, side by side in the order of `_modulations`."""
        if self.has_table:
            return ModulationTable(self._embedding, self._making_modulations, inputs, timesteps, batch, dtype)
        embeddings = [self._embedding(inputs, as_fractions(t, batch, dtype)) for t in timesteps]
        layers = self._making_modulations

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


@dataclass(frozen=True, slots=True)
class _Blocks:
    """All blocks at one step, in the two parts that step caches know (`step_cache.Blocks`)."""

    first_at: Callable[..., torch.Tensor]
    others_at: Callable[..., torch.Tensor]
    is_compiled: bool
    text: torch.Tensor
    flat: torch.Tensor
    rope: Rope
    context: Context | None

    def first(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Image and text tokens behind the first block."""
        both = self.first_at(image, self.text, *self.rope, self.flat)
        length = self.text.shape[1]
        return both[:, length:].contiguous(), both[:, :length].contiguous()

    def others(self, image: torch.Tensor, text: torch.Tensor, rows: Sequence[int] | None = None) -> torch.Tensor:
        """Image tokens behind the last block; those of `rows` of the batch alone, where they are given."""
        if rows is None:
            return self.others_at(image, text, *self.rope, self.flat)
        index = torch.tensor(rows, device=image.device)
        if self.is_compiled:  # another size of batch would cost another compilation
            return self.others_at(image, text, *self.rope, self.flat)[index]
        return self.others_at(image[index], text[index], *self.rope, self.flat[index])

    def mean(self, of_tokens: torch.Tensor) -> torch.Tensor:
        """See `step_cache.Blocks`."""
        return of_tokens if self.context is None else self.context.mean(of_tokens)


def _settled(stream: Any) -> torch.Tensor:
    """Tokens behind a block of either kind."""
    return stream.settled() if isinstance(stream, Residual) else stream
