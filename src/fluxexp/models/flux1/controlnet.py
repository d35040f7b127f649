"""The ControlNet: a second network that reads noisy latents and a control image, and makes residuals at each step.

It has blocks of the same classes as the transformer, so its blocks are those of `blocks.py` and `fused_blocks.py`, with
the options of the denoiser. At steps where all factors are 0, diffusers computes residuals and multiplies them by 0.
Here they are not computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch

from fluxexp.models.context_parallel.context import Context
from fluxexp.models.flux1.block_passes import built_blocks, captured, entered, exchanged_heads, materialized
from fluxexp.models.flux1.denoiser_options import DenoiserOptions
from fluxexp.models.flux1.flow import Control
from fluxexp.models.flux1.latents import to_device
from fluxexp.models.flux1.modulation import as_fractions, modulation_layers, modulations_of_steps
from fluxexp.models.kernels.cuda_graph import GraphedFunction
from fluxexp.records import Point

ControlFunction = Callable[[int, torch.Tensor], torch.Tensor | None]
"""From a step's number and packed latents to the residuals of that step (`control_residuals.py`); None: all are 0."""


class ControlNet(Protocol):
    """Makes the residuals of each step."""

    def prepare(self, control: Control, inputs: Mapping[str, Any], timesteps: torch.Tensor) -> ControlFunction:
        """Prepare one batch.

        Args:
            control: what the ControlNet needs of the batch.
            inputs: those of the transformer (`Denoiser.prepare`).
            timesteps: of all steps to run, in [0, 1000].
        """
        ...

    def with_context(self, context: Context | None) -> ControlNet:
        """A ControlNet that holds only a part of each image's tokens; with None, all of them."""
        ...

    def free_memory(self) -> None:
        """Free the caches of earlier shapes."""
        ...


class LibraryControlNet:
    """The library's own forward pass."""

    def __init__(self, controlnet: Any) -> None:
        self._controlnet = controlnet

    def prepare(self, control: Control, inputs: Mapping[str, Any], timesteps: torch.Tensor) -> ControlFunction:
        """See `ControlNet`."""
        own = {**inputs, "guidance": control.guidance}
        batch, dtype = len(inputs["encoder_hidden_states"]), inputs["encoder_hidden_states"].dtype

        def residuals(number: int, latents: torch.Tensor) -> torch.Tensor | None:
            if not control.is_used[number]:
                return None
            doubles, singles = self._controlnet(
                hidden_states=latents,
                controlnet_cond=control.image,
                controlnet_mode=control.modes,
                conditioning_scale=1.0,
                timestep=as_fractions(timesteps[number], batch, dtype),
                return_dict=False,
                **own,
            )
            return _scaled(torch.stack([*(doubles or ()), *(singles or ())]), control.scales[number])

        return residuals

    def with_context(self, context: Context | None) -> ControlNet:
        """Itself: the model makes sure that only a `HoistedControlNet` works in a group of ranks."""
        return self

    def free_memory(self) -> None:
        """There is no cache."""


class HoistedControlNet:
    """Runs the library's layers in the library's order. Computes what is the same at every step once per batch.

    That is the prompt's projection, the mode's token, the control image's tokens, the RoPE tables, and the embeddings
    of timestep, guidance and pooled prompt.

    Args:
        options: of the denoiser. The ControlNet has no step cache, and its weights are never streamed.
    """

    def __init__(self, controlnet: Any, options: DenoiserOptions) -> None:
        self._controlnet = controlnet
        self._options = replace(options, step_cache=None, streams=None)
        self._doubles, self._singles = built_blocks(controlnet, self._options)
        blocks = (*controlnet.transformer_blocks, *controlnet.single_transformer_blocks)
        self._modulations = [layer for block in blocks for layer in modulation_layers(block)]
        self._residuals_at = captured(self._residuals, self._options)

    def with_context(self, context: Context | None) -> ControlNet:
        """See `ControlNet`. It replaces this one, whose CUDA graphs and connections are freed here."""
        if context is not None:
            context.check(self._controlnet.config.num_attention_heads)
        self.free_memory()
        self.disconnect()
        return HoistedControlNet(self._controlnet, replace(self._options, context=context))

    def free_memory(self) -> None:
        """Free the CUDA graphs."""
        if isinstance(self._residuals_at, GraphedFunction):
            self._residuals_at.forget()

    def disconnect(self) -> None:
        """Free the memory that ranks exchange data in."""
        if self._options.context is not None:
            self._options.context.disconnect()

    def prepare(self, control: Control, inputs: Mapping[str, Any], timesteps: torch.Tensor) -> ControlFunction:
        """See `ControlNet`."""
        net, context = self._controlnet, self._options.context
        text, text_ids = net.context_embedder(inputs["encoder_hidden_states"]), inputs["txt_ids"]
        if net.union:
            text = torch.cat([net.controlnet_mode_embedder(control.modes), text], dim=1)
            text_ids = torch.cat([text_ids[:1], text_ids], dim=0)
        rope = net.pos_embed(torch.cat((text_ids, inputs["img_ids"]), dim=0))
        hint = net.controlnet_x_embedder(_control_tokens(net, control.image))
        modulations = modulations_of_steps(
            net,
            self._modulations,
            {**inputs, "guidance": control.guidance},
            timesteps,
            text.dtype,
            has_table=self._options.has_modulation_table,
        )
        if context is not None:
            heads = exchanged_heads(net, self._options)
            text, rope = context.own_inputs(text, rope, hint.shape[1], heads, self.free_memory)
            hint = context.own_image(hint)

        def residuals(number: int, latents: torch.Tensor) -> torch.Tensor | None:
            if not control.is_used[number]:
                return None
            own = latents if context is None else context.own_image(latents)
            return self._residuals_at(own, hint, text, *rope, modulations(number), control.scales[number])

        return residuals

    def _residuals(
        self,
        tokens: torch.Tensor,
        hint: torch.Tensor,
        text: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        flat: torch.Tensor,
        scales: torch.Tensor,
    ) -> torch.Tensor:
        """All residuals of a step: (residuals, B, image tokens, width)."""
        net, rope, found = self._controlnet, (cosines, sines), []
        mods = iter(torch.split(flat, [layer.out_features for layer in self._modulations], dim=1))
        image, own_text = net.x_embedder(tokens) + hint, self._entered(text)
        for double, layer in zip(self._doubles, net.controlnet_blocks, strict=True):
            after, own_text = double(self._entered(image), own_text, next(mods), next(mods), rope)
            image = materialized(after)
            found.append(layer(image))
        stream, length = torch.cat([materialized(own_text), image], dim=1), text.shape[1]
        for single, layer in zip(self._singles, net.controlnet_single_blocks, strict=True):
            stream = materialized(single(self._entered(stream), next(mods), rope))
            found.append(layer(stream[:, length:]))
        return _scaled(torch.stack(found), scales)

    def _entered(self, tokens: torch.Tensor) -> Any:
        return entered(tokens, self._options)


def control_of(controlnet: Any, image: torch.Tensor, points: Sequence[Point], steps: int) -> Control:
    """What a ControlNet needs of a batch.

    Args:
        controlnet: FluxControlNetModel of diffusers.
        image: see `Control.image`.
        points: for each image, its point.
        steps: number of steps that are run.
    """
    scales = torch.tensor([point.control.scales(steps) for point in points], dtype=torch.float32).T.contiguous()
    modes = torch.tensor([[point.control.mode or 0] for point in points]) if controlnet.union else None
    guidance = torch.tensor([point.guidance for point in points], dtype=torch.float32)
    return Control(
        image=image,
        modes=None if modes is None else to_device(modes, image.device),
        guidance=to_device(guidance, image.device) if controlnet.config.guidance_embeds else None,
        scales=to_device(scales, image.device),
        is_used=tuple(bool(any(row)) for row in scales.tolist()),
    )


def _control_tokens(controlnet: Any, image: torch.Tensor) -> torch.Tensor:
    """Tokens of the control images (B, image tokens, channels): packed latents as they are, or pixels by convolutions.

    Each token of the latter (XLabs) has the features of `patch_size` x `patch_size` neighbors.
    """
    if controlnet.input_hint_block is None:
        return image
    features, side = controlnet.input_hint_block(image), controlnet.config.patch_size
    batch, channels, height, width = features.shape
    rows, columns = height // side, width // side
    cells = features.reshape(batch, channels, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(batch, rows * columns, -1)  # type: ignore[no-any-return]


def _scaled(residuals: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Multiply residuals (residuals, B, image tokens, width) by the factor of each image, in place.

    diffusers multiplies by a Python number. For values in half precision, PyTorch does that in float32 and rounds once.
    So does this product, whose factors are float32.
    """
    return residuals.mul_(scales[:, None, None])
