"""Computes the velocity at each step of a batch: by the library's forward pass, or with hoisted constants.

A denoiser is prepared for a batch and its schedule, and is then called once per step. It knows no scheduler: the caller
decides what to do with the velocity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812

from fluxexp.errors import ModelError
from fluxexp.models.context_parallel.context import Context
from fluxexp.models.flux1.block_passes import BlockPasses
from fluxexp.models.flux1.denoiser_options import DenoiserOptions
from fluxexp.models.flux1.ip_adapter import INPUT, hoisted, of_rows, set_library_scales
from fluxexp.models.flux1.modulation import ModulationTable, as_fractions
from fluxexp.models.kernels.attention_types import Rope
from fluxexp.models.step_cache.step_caches import StepCache

StepFunction = Callable[[int, torch.Tensor], torch.Tensor]
"""From a step's number and the tokens that the transformer sees (B, image tokens, channels) to the velocity."""


class Denoiser(Protocol):
    """What the denoising loop calls."""

    computed_steps: list[int]
    """For each image of the batch prepared last, the number of steps that ran the whole transformer. Each batch has a
    list of its own."""

    @property
    def is_exact(self) -> bool:
        """Whether the velocity has the bits of the library's forward pass for the same batch."""
        ...

    def prepare(self, inputs: Mapping[str, Any], timesteps: torch.Tensor, left_out: int = 0) -> StepFunction:
        """Prepare one batch.

        Args:
            inputs: what `FluxTransformer2DModel.forward` takes besides tokens and timestep; and `PictureTokens`
                under `ip_adapter.INPUT` if there is an IP-Adapter.
            timesteps: of all steps to run, in [0, 1000].
            left_out: number of earlier steps of the schedule that are not run (`sampling.strength` below 1).
        """
        ...

    def free_memory(self) -> None:
        """Free the caches of earlier shapes."""
        ...


class LibraryDenoiser:
    """The library's own forward pass at every step."""

    is_exact = True

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer
        self.computed_steps: list[int] = []

    def prepare(self, inputs: Mapping[str, Any], timesteps: torch.Tensor, left_out: int = 0) -> StepFunction:
        """See `Denoiser`."""
        batch = len(inputs["encoder_hidden_states"])
        self.computed_steps = [len(timesteps)] * batch
        dtype = inputs["encoder_hidden_states"].dtype
        pictures = inputs.get(INPUT)
        inputs = {name: value for name, value in inputs.items() if name != INPUT}

        def step(number: int, tokens: torch.Tensor) -> torch.Tensor:
            own: dict[str, Any] = {}
            if pictures is not None:  # the library changes the dictionary
                set_library_scales(self._transformer, pictures.scales)
                own["joint_attention_kwargs"] = {"ip_adapter_image_embeds": [pictures.embeds]}
            timestep = as_fractions(timesteps[number], batch, dtype)
            velocity: torch.Tensor = self._transformer(
                hidden_states=tokens, timestep=timestep, return_dict=False, **inputs, **own
            )[0]
            return velocity

        return step

    def free_memory(self) -> None:
        """There is no cache."""


class HoistedDenoiser:
    """Runs the library's layers in the library's order. Computes what is the same at every step once per batch.

    That is the prompt's projection, the RoPE tables, and the embeddings of timestep, guidance and pooled prompt. The
    options never change: another step cache or context makes another denoiser.

    Args:
        passes: built from the same options, except for the step cache; by default new ones.
    """

    def __init__(
        self, transformer: Any, options: DenoiserOptions | None = None, passes: BlockPasses | None = None
    ) -> None:
        self._transformer = transformer
        self.options = options or DenoiserOptions()
        self.passes = passes or BlockPasses(transformer, self.options)
        self.computed_steps: list[int] = []

    @property
    def is_exact(self) -> bool:
        """See `Denoiser`. A step cache does not count: what it computes has the library's bits."""
        return self.options.is_exact

    def with_step_cache(self, step_cache: StepCache | None) -> HoistedDenoiser:
        """This denoiser with another step cache. Both share their blocks and CUDA graphs, which do not depend on it."""
        return HoistedDenoiser(self._transformer, replace(self.options, step_cache=step_cache), self.passes)

    def with_context(self, context: Context | None) -> HoistedDenoiser:
        """A denoiser that holds only a part of each image's tokens; with None, all of them.

        It replaces this denoiser. The CUDA graphs and connections of this one are freed here, because the graphs of
        the new denoiser need their memory.

        Raises:
            ModelError: the model's optimizations do not allow context parallelism.
        """
        if context is not None:
            if self.options.has_fp8_attention:
                raise ModelError(
                    "optimization.fp8_attention=true does not work with context parallelism: "
                    "use optimization.fp8_attention=false; fp8_linears may stay on"
                )
            context.check(self._transformer.config.num_attention_heads)
        self.free_memory()
        if self.options.context is not None:
            self.options.context.disconnect()
        return HoistedDenoiser(self._transformer, replace(self.options, context=context))

    def free_memory(self) -> None:
        """Free the CUDA graphs."""
        self.passes.free_memory()

    def prepare(self, inputs: Mapping[str, Any], timesteps: torch.Tensor, left_out: int = 0) -> StepFunction:
        """See `Denoiser`."""
        transformer, passes = self._transformer, self.passes
        context, cache = self.options.context, self.options.step_cache
        text = transformer.context_embedder(inputs["encoder_hidden_states"])
        rope = transformer.pos_embed(torch.cat((inputs["txt_ids"], inputs["img_ids"]), dim=0))
        modulations = self._modulations_of(inputs, timesteps, len(text), text.dtype)
        if context is not None:
            text, rope = self._own_part(context, text, rope, len(inputs["img_ids"]))
        pictures = hoisted(transformer, inputs)
        cached = None if cache is None else cache.begin(len(text), len(timesteps), left_out)
        self.computed_steps = [len(timesteps)] * len(text) if cached is None else cached.computed_steps

        def step(number: int, tokens: torch.Tensor) -> torch.Tensor:
            if cached is None:
                return passes.velocity_at(tokens, text, *rope, modulations(number), *pictures)
            flat = modulations(number)
            blocks = _Blocks(passes, self.options.is_compiled, text, flat, rope, context, pictures)
            return passes.output(cached(number, transformer.x_embedder(tokens), blocks), flat)

        if context is None:
            return step
        return lambda number, tokens: context.gathered(step(number, context.own_image(tokens)))

    def _own_part(
        self, context: Context, text: torch.Tensor, rope: Rope, image_tokens: int
    ) -> tuple[torch.Tensor, Rope]:
        """This rank's part of text and RoPE. Connects the ranks for the batch."""
        text_tokens = text.shape[1]
        context.arrange(text_tokens, image_tokens)
        if context.is_full:  # true on all ranks at once, as they saw the same batches
            self.free_memory()  # first: the graphs refer to the exchange memory
            context.disconnect()
        if self.options.is_fused:
            config = self._transformer.config
            context.connect(len(text), config.num_attention_heads, config.attention_head_dim, text.dtype)
        return context.own_text(text), context.own_rope(rope, text_tokens)

    def _modulations_of(
        self, inputs: Mapping[str, Any], timesteps: torch.Tensor, batch: int, dtype: torch.dtype
    ) -> Callable[[int], torch.Tensor]:
        """All modulations of a step, side by side in the order of `BlockPasses.modulations`."""
        layers = self.passes.streamed_modulations
        if self.options.has_modulation_table:
            return ModulationTable(self._embedding, layers, inputs, timesteps, batch, dtype)
        embeddings = [self._embedding(inputs, as_fractions(t, batch, dtype)) for t in timesteps]

        def of_step(number: int) -> torch.Tensor:
            activated = F.silu(embeddings[number])
            return torch.cat([layer(activated) for layer in layers], dim=1)

        return of_step

    def _embedding(self, inputs: Mapping[str, Any], fractions: torch.Tensor) -> torch.Tensor:
        """Embedding of timestep, guidance and pooled prompt: (rows, width).

        Args:
            fractions: timesteps in [0, 1], one per row; the rows of a step are the images of the batch.
        """
        pooled = inputs["pooled_projections"]
        repeats = len(fractions) // len(pooled)
        rows = [fractions * 1000]
        if inputs["guidance"] is not None:
            rows.append((inputs["guidance"].to(fractions.dtype) * 1000).repeat(repeats))
        return self._transformer.time_text_embed(*rows, pooled.repeat(repeats, 1))  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class _Blocks:
    """All blocks at one step, in the two parts that step caches know (`step_cache.Blocks`)."""

    passes: BlockPasses
    is_compiled: bool
    text: torch.Tensor
    flat: torch.Tensor
    rope: Rope
    context: Context | None
    pictures: tuple[torch.Tensor, ...]

    def first(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Image and text tokens after the first block."""
        both = self.passes.first_at(image, self.text, *self.rope, self.flat, *self.pictures)
        length = self.text.shape[1]
        return both[:, length:].contiguous(), both[:, :length].contiguous()

    def others(self, image: torch.Tensor, text: torch.Tensor, rows: Sequence[int] | None = None) -> torch.Tensor:
        """Image tokens after the last block; only those of the images `rows` of the batch, if given."""
        others_at = self.passes.others_at
        if rows is None:
            return others_at(image, text, *self.rope, self.flat, *self.pictures)
        index = torch.tensor(rows, device=image.device)
        if self.is_compiled:  # another batch size would cost another compilation
            return others_at(image, text, *self.rope, self.flat, *self.pictures)[index]
        pictures = of_rows(self.pictures, index)
        return others_at(image[index], text[index], *self.rope, self.flat[index], *pictures)

    def mean(self, of_tokens: torch.Tensor) -> torch.Tensor:
        """See `step_cache.Blocks`."""
        return of_tokens if self.context is None else self.context.mean(of_tokens)
