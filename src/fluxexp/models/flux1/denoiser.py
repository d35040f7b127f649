"""Computes the velocity at each step of a batch: by the library's forward pass, or with hoisted constants.

A denoiser is prepared for a batch and its schedule, and is then called once per step. It knows no scheduler: the caller
decides what to do with the velocity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from fluxexp.errors import ModelError
from fluxexp.models.context_parallel.context import Context
from fluxexp.models.flux1.block_passes import BlockPasses, exchanged_heads
from fluxexp.models.flux1.control_residuals import NO_RESIDUALS, ResidualLayout, StepResiduals, as_arguments
from fluxexp.models.flux1.denoiser_options import DenoiserOptions
from fluxexp.models.flux1.ip_adapter import INPUT, hoisted, of_rows, set_library_scales
from fluxexp.models.flux1.modulation import as_fractions, modulations_of_steps
from fluxexp.models.kernels.attention_types import Rope
from fluxexp.models.step_cache.step_caches import StepCache


class StepFunction(Protocol):
    """Computes the velocity of one step."""

    def __call__(self, number: int, tokens: torch.Tensor, residuals: StepResiduals = NO_RESIDUALS, /) -> torch.Tensor:
        """The velocity of step `number`.

        Args:
            number: of the step.
            tokens: what the transformer sees (B, image tokens, channels).
            residuals: those of the ControlNet at this step. In a context-parallel group, they are those of this rank's
                image tokens.
        """
        ...


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

    def __init__(self, transformer: Any, layout: ResidualLayout | None = None) -> None:
        self._transformer = transformer
        self._layout = layout
        self.computed_steps: list[int] = []

    def prepare(self, inputs: Mapping[str, Any], timesteps: torch.Tensor, left_out: int = 0) -> StepFunction:
        """See `Denoiser`."""
        batch = len(inputs["encoder_hidden_states"])
        self.computed_steps = [len(timesteps)] * batch
        dtype = inputs["encoder_hidden_states"].dtype
        pictures = inputs.get(INPUT)
        inputs = {name: value for name, value in inputs.items() if name != INPUT}

        def step(number: int, tokens: torch.Tensor, residuals: StepResiduals = NO_RESIDUALS, /) -> torch.Tensor:
            own: dict[str, Any] = {}
            if pictures is not None:  # the library changes the dictionary
                set_library_scales(self._transformer, pictures.scales)
                own["joint_attention_kwargs"] = {"ip_adapter_image_embeds": [pictures.embeds]}
            timestep = as_fractions(timesteps[number], batch, dtype)
            added = {} if self._layout is None else self._layout.arguments(residuals())
            velocity: torch.Tensor = self._transformer(
                hidden_states=tokens, timestep=timestep, return_dict=False, **inputs, **own, **added
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
        layout: of the residuals of a ControlNet; None if there is none.
    """

    def __init__(
        self,
        transformer: Any,
        options: DenoiserOptions | None = None,
        passes: BlockPasses | None = None,
        layout: ResidualLayout | None = None,
    ) -> None:
        self._transformer = transformer
        self._layout = layout
        self.options = options or DenoiserOptions()
        self.passes = passes or BlockPasses(transformer, self.options, layout)
        self.computed_steps: list[int] = []

    @property
    def is_exact(self) -> bool:
        """See `Denoiser`. A step cache does not count: what it computes has the library's bits."""
        return self.options.is_exact

    def with_step_cache(self, step_cache: StepCache | None) -> HoistedDenoiser:
        """This denoiser with another step cache. Both share their blocks and CUDA graphs, which do not depend on it."""
        options = replace(self.options, step_cache=step_cache)
        return HoistedDenoiser(self._transformer, options, self.passes, self._layout)

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
        return HoistedDenoiser(self._transformer, replace(self.options, context=context), layout=self._layout)

    def free_memory(self) -> None:
        """Free the CUDA graphs."""
        self.passes.free_memory()

    def prepare(self, inputs: Mapping[str, Any], timesteps: torch.Tensor, left_out: int = 0) -> StepFunction:
        """See `Denoiser`."""
        transformer, passes = self._transformer, self.passes
        context, cache = self.options.context, self.options.step_cache
        text = transformer.context_embedder(inputs["encoder_hidden_states"])
        rope = transformer.pos_embed(torch.cat((inputs["txt_ids"], inputs["img_ids"]), dim=0))
        modulations = modulations_of_steps(
            transformer,
            passes.streamed_modulations,
            inputs,
            timesteps,
            text.dtype,
            has_table=self.options.has_modulation_table,
        )
        if context is not None:
            heads = exchanged_heads(transformer, self.options)
            text, rope = context.own_inputs(text, rope, len(inputs["img_ids"]), heads, self.free_memory)
        pictures = hoisted(transformer, inputs)
        cached = None if cache is None else cache.begin(len(text), len(timesteps), left_out)
        self.computed_steps = [len(timesteps)] * len(text) if cached is None else cached.computed_steps

        def step(number: int, tokens: torch.Tensor, residuals: StepResiduals = NO_RESIDUALS, /) -> torch.Tensor:
            own = tokens if context is None else context.own_image(tokens)
            flat = modulations(number)
            if cached is None:
                velocity = passes.velocity_at(own, text, *rope, flat, *as_arguments(residuals()), *pictures)
            else:
                blocks = _Blocks(passes, self.options.is_compiled, text, flat, rope, context, residuals, pictures)
                velocity = passes.output(cached(number, transformer.x_embedder(own), blocks), flat)
            return velocity if context is None else context.gathered(velocity)

        return step


@dataclass(frozen=True, slots=True)
class _Blocks:
    """All blocks at one step, in the two parts that step caches know (`step_cache.Blocks`)."""

    passes: BlockPasses
    is_compiled: bool
    text: torch.Tensor
    flat: torch.Tensor
    rope: Rope
    context: Context | None
    residuals: StepResiduals
    """Computed when the other blocks run: a step that skips them skips the ControlNet, too."""
    pictures: tuple[torch.Tensor, ...]

    def first(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Image and text tokens after the first block."""
        both = self.passes.first_at(image, self.text, *self.rope, self.flat, *self.pictures)
        length = self.text.shape[1]
        return both[:, length:].contiguous(), both[:, :length].contiguous()

    def others(self, image: torch.Tensor, text: torch.Tensor, rows: Sequence[int] | None = None) -> torch.Tensor:
        """Image tokens after the last block; only those of the images `rows` of the batch, if given."""
        others_at = self.passes.others_at
        of_all = (image, text, *self.rope, self.flat)
        residuals = self.residuals()
        if rows is None:
            return others_at(*of_all, *as_arguments(residuals), *self.pictures)
        index = torch.tensor(rows, device=image.device)
        if self.is_compiled:  # another batch size would cost another compilation
            return others_at(*of_all, *as_arguments(residuals), *self.pictures)[index]
        # The rows of a second pass have the residuals of the same images.
        own = None if residuals is None else residuals[:, index % residuals.shape[1]]
        added = *as_arguments(own), *of_rows(self.pictures, index)
        return others_at(image[index], text[index], *self.rope, self.flat[index], *added)

    def mean(self, of_tokens: torch.Tensor) -> torch.Tensor:
        """See `step_cache.Blocks`."""
        return of_tokens if self.context is None else self.context.mean(of_tokens)
