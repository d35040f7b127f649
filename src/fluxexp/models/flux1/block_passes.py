"""The transformer's blocks as functions of tensors: one whole step, or its two parts, eager or as CUDA graphs.

All functions take and return tensors of fixed shapes for a batch, so that each of them can be captured. Arguments:
`text` is the projected prompt (B, text tokens, width). `cosines` and `sines` are the RoPE tables, float32 (text and
image tokens, head dimension). `flat` has all modulations of a step side by side (B, sum of their widths). `added`
has the residuals of a ControlNet, if there is one (`control_residuals.py`), then `pictures`: the result of
`ip_adapter.hoisted`, which has no tensor or two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from fluxexp.models.context_parallel.context import Context
from fluxexp.models.flux1.blocks import DoubleBlock, SingleBlock, library_attention
from fluxexp.models.flux1.control_residuals import ResidualLayout, for_rows
from fluxexp.models.flux1.denoiser_options import DenoiserOptions
from fluxexp.models.flux1.fused_blocks import FusedAttention, FusedDoubleBlock, FusedSingleBlock
from fluxexp.models.flux1.ip_adapter import of_block
from fluxexp.models.flux1.modulation import modulation_layers
from fluxexp.models.kernels.attention_types import Rope
from fluxexp.models.kernels.cuda_graph import GraphedFunction
from fluxexp.models.kernels.fp8_attention import Fp8Attention
from fluxexp.models.kernels.fused_ops import Residual, modulated_norm
from fluxexp.models.kernels.side_stream import SideStream


class BlockPasses:
    """Passes through the blocks of one transformer, built once from `options`.

    Args:
        layout: of the residuals of a ControlNet; None if there is none.

    Attributes:
        doubles: the double blocks, in order.
        singles: the single blocks, in order.
        velocity_at: one step: from the tokens that the transformer sees (B, image tokens, channels) to the velocity.
        first_at: text and image tokens after the first block, as one tensor (B, text and image tokens, width).
        others_at: image tokens after the last block (B, image tokens, width), from text and image tokens after the
            first one.
    """

    def __init__(self, transformer: Any, options: DenoiserOptions, layout: ResidualLayout | None = None) -> None:
        self._transformer = transformer
        self._options = options
        self._layout = layout
        self.doubles, self.singles = built_blocks(transformer, options)
        self.velocity_at = captured(self._velocity, options)
        self.first_at, self.others_at = captured(self._first, options), captured(self._others, options)

    def free_memory(self) -> None:
        """Free the CUDA graphs. They are captured again when their shapes come again."""
        for function in (self.velocity_at, self.first_at, self.others_at):
            if isinstance(function, GraphedFunction):
                function.forget()

    @property
    def modulations(self) -> list[torch.nn.Linear]:
        """The layers that make modulations from an embedding: first those of the blocks, last the output's."""
        transformer = self._transformer
        blocks = (*transformer.transformer_blocks, *transformer.single_transformer_blocks)
        return [*(layer for block in blocks for layer in modulation_layers(block)), transformer.norm_out.linear]

    @property
    def streamed_modulations(self) -> list[Callable[[torch.Tensor], torch.Tensor]]:
        """The same layers, each called with its weights on the device."""
        layers = self.modulations
        if self._options.streams is None:
            return list(layers)
        wrap = self._options.streams[1].wrap
        # The output's layer belongs to no block and stays on the device.
        return [*(wrap(number, layer) for number, layer in enumerate(layers[:-1])), layers[-1]]

    def output(self, image: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
        """The velocity of image tokens after the last block (B, image tokens, width)."""
        return self._output(self._entered(image), 0, self._split(flat)[-1])

    def _velocity(
        self,
        tokens: torch.Tensor,
        text: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        flat: torch.Tensor,
        *added: torch.Tensor,
    ) -> torch.Tensor:
        mods, rope, (residuals, pictures) = iter(self._split(flat)), (cosines, sines), _parted(added)
        image, own_text = self._entered(self._transformer.x_embedder(tokens)), self._entered(text)
        numbers = range(len(self.doubles))
        image, own_text = self._through(numbers, image, own_text, mods, rope, residuals, pictures)
        stream = self._singly(image, own_text, mods, rope, residuals)
        return self._output(stream, text.shape[1], next(mods))

    def _first(
        self,
        image: torch.Tensor,
        text: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        flat: torch.Tensor,
        *pictures: torch.Tensor,
    ) -> torch.Tensor:
        mods, rope = iter(self._split(flat)), (cosines, sines)
        streams = self._through(range(1), self._entered(image), self._entered(text), mods, rope, None, pictures)
        return torch.cat([materialized(stream) for stream in reversed(streams)], dim=1)  # a graph returns one tensor

    def _others(
        self,
        image: torch.Tensor,
        text: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        flat: torch.Tensor,
        *added: torch.Tensor,
    ) -> torch.Tensor:
        residuals, pictures = _parted(added)
        mods, rope = iter(self._split(flat)[2:]), (cosines, sines)  # the first block has taken two: image and text
        entered = self._controlled(self._entered(image), 0, residuals), self._entered(text)
        streams = self._through(range(1, len(self.doubles)), *entered, mods, rope, residuals, pictures)
        return materialized(self._singly(*streams, mods, rope, residuals))[:, text.shape[1] :].contiguous()

    def _split(self, flat: torch.Tensor) -> Sequence[torch.Tensor]:
        return torch.split(flat, [layer.out_features for layer in self.modulations], dim=1)

    def _entered(self, tokens: torch.Tensor) -> Any:
        return entered(tokens, self._options)

    def _through(
        self,
        numbers: Sequence[int],
        image: Any,
        text: Any,
        mods: Iterator[torch.Tensor],
        rope: Rope,
        residuals: torch.Tensor | None,
        pictures: Sequence[torch.Tensor],
    ) -> tuple[Any, Any]:
        """Through the double blocks with these numbers."""
        for number in numbers:
            picture = of_block(pictures, number)
            image, text = self.doubles[number](image, text, next(mods), next(mods), rope, picture)
            image = self._controlled(image, number, residuals)
        return image, text

    def _controlled(self, image: Any, number: int, residuals: torch.Tensor | None) -> Any:
        """Image tokens after double block `number`, with its residual."""
        if residuals is None or self._layout is None:
            return image
        index = self._layout.of_double(number, len(self.doubles))
        if index is None:
            return image
        if isinstance(image, Residual):
            return replace(image, tokens=image.tokens + for_rows(residuals[index], len(image.tokens)))
        return image + for_rows(residuals[index], len(image))

    def _singly(
        self, image: Any, text: Any, mods: Iterator[torch.Tensor], rope: Rope, residuals: torch.Tensor | None
    ) -> Any:
        """Through the single blocks, which see text and image as one stream."""
        first = materialized(text)
        stream = self._entered(torch.cat([first, materialized(image)], dim=1))
        for number, single in enumerate(self.singles):
            stream = single(stream, next(mods), rope)
            if residuals is not None and self._layout is not None:
                index = self._layout.of_single(number, len(self.singles))
                if index is not None:
                    _add_to_image(stream, residuals[index], first.shape[1])
        return stream

    def _output(self, stream: Any, first: int, modulation: torch.Tensor) -> torch.Tensor:
        """The velocity of the tokens from index `first` on."""
        scale, shift = modulation.chunk(2, dim=1)  # in this order, unlike in the blocks
        norm = self._transformer.norm_out.norm
        if isinstance(stream, Residual):
            _, normed = modulated_norm(stream, shift, scale, norm.eps, is_quantized=False)
            assert isinstance(normed, torch.Tensor)
            normed = normed[:, first:]
        else:
            normed = norm(stream[:, first:]) * (1 + scale)[:, None, :] + shift[:, None, :]
        return self._transformer.proj_out(normed)  # type: ignore[no-any-return]


def captured(function: Callable[..., torch.Tensor], options: DenoiserOptions) -> Callable[..., torch.Tensor]:
    """`function` as CUDA graphs, if the options say so."""
    if not options.has_cuda_graph:
        return function
    context = options.context
    if context is None:
        return GraphedFunction(function)
    # A graph holds the addresses of the memory that ranks exchange data in, so it depends on the arrangement, too.
    return GraphedFunction(_joining_streams(function, context), lambda: context.arrangement)


def entered(tokens: torch.Tensor, options: DenoiserOptions) -> Any:
    """Tokens in the form that the blocks take. Fused blocks take a `Residual`, whose update is not added yet."""
    return Residual(tokens) if options.is_fused else tokens


def _add_to_image(stream: Any, residual: torch.Tensor, text_tokens: int) -> None:
    """Add a residual to the image tokens of a single block's result, in place: the block has made a new tensor."""
    tokens = stream.tokens if isinstance(stream, Residual) else stream
    tokens[:, text_tokens:].add_(for_rows(residual, len(tokens)))


def built_blocks(transformer: Any, options: DenoiserOptions) -> tuple[list[Any], list[Any]]:
    """Double and single blocks of a transformer or a ControlNet."""
    doubles, singles = transformer.transformer_blocks, transformer.single_transformer_blocks
    attend = options.attend
    if options.is_fused or options.context is not None:
        attend = attend or library_attention(next(iter((*doubles, *singles))).attn.processor)
    if options.context is not None:
        assert attend is not None
        attend = options.context.attention(attend)
    ours: list[Any]
    if options.is_fused:
        assert attend is not None
        attention = FusedAttention(attend, Fp8Attention() if options.has_fp8_attention else None)
        # The second stream lets the MLP run while heads travel between ranks. A single GPU gains nothing from it, and
        # without a CUDA graph the host would pay for its events at every step.
        has_two = options.has_cuda_graph and options.context is not None
        side_stream = SideStream(transformer.device if has_two else None)
        ours = [FusedDoubleBlock(block, attention) for block in doubles]
        ours += [FusedSingleBlock(block, attention, side_stream) for block in singles]
    else:
        ours = [DoubleBlock(block, attend) for block in doubles]
        ours += [SingleBlock(block, attend) for block in singles]
    if options.is_compiled:  # each block at the first call with a shape
        for block in ours:
            block.compile(fullgraph=True, dynamic=False)
    if options.streams is not None:
        wrap = options.streams[0].wrap
        ours = [wrap(number, block) for number, block in enumerate(ours)]
    return ours[: len(doubles)], ours[len(doubles) :]


def exchanged_heads(transformer: Any, options: DenoiserOptions) -> tuple[int, int] | None:
    """Number and dimension of the heads that ranks exchange directly. None: the blocks need collectives."""
    config = transformer.config
    return (config.num_attention_heads, config.attention_head_dim) if options.is_fused else None


def _joining_streams(function: Callable[..., torch.Tensor], context: Context) -> Callable[..., torch.Tensor]:
    """`function`, which also joins the context's streams if it fails: a capture can only end after that."""

    def joined(*inputs: torch.Tensor) -> torch.Tensor:
        try:
            return function(*inputs)
        except BaseException:
            context.join_streams()
            raise

    return joined


def materialized(stream: Any) -> torch.Tensor:
    """Tokens after a block of either kind."""
    return stream.materialize() if isinstance(stream, Residual) else stream


def _parted(added: Sequence[torch.Tensor]) -> tuple[torch.Tensor | None, Sequence[torch.Tensor]]:
    """Residuals and pictures. Pictures are two tensors, so an odd number of tensors begins with residuals."""
    has_residuals = len(added) % 2
    return added[0] if has_residuals else None, added[has_residuals:]
