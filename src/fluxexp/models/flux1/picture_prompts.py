"""FLUX.1 Redux: references as a part of the prompt. The same bits as `FluxPriorReduxPipeline` of diffusers.

SigLIP encodes a picture, and two layers make text tokens of its output. They follow the tokens of the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fluxexp.models.base import ModelInput
from fluxexp.models.flux1.flow import Conditioning
from fluxexp.models.flux1.latents import to_device
from fluxexp.models.text.text_cache import Encoding
from fluxexp.records import ReduxUse


class PicturePrompts:
    """Makes tokens of references.

    Args:
        prior: a `FluxPriorReduxPipeline`, of which the image encoder, its processor and the embedder are used.
        device: where they run.
        enter: loads their weights to the device if they are streamed.
    """

    def __init__(self, prior: Any, device: torch.device, enter: Callable[[], None]) -> None:
        self._prior = prior
        self._device = device
        self._enter = enter
        prior.image_encoder.use_head = False  # the pooled output, which diffusers computes and does not use

    @property
    def modules(self) -> list[torch.nn.Module]:
        """The modules with weights."""
        return [self._prior.image_encoder, self._prior.image_embedder]

    @property
    def num_tokens(self) -> int:
        """Number of tokens of a picture."""
        config = self._prior.image_encoder.config
        return int(config.image_size // config.patch_size) ** 2

    def read(self, inputs: Sequence[ModelInput]) -> list[torch.Tensor]:
        """The host's part: the references of each input at the size that SigLIP sees, (references, 3, side, side)."""
        processor, dtype = self._prior.feature_extractor, self._prior.image_encoder.dtype
        pixels = [
            processor.preprocess(
                images=list(item.references), do_resize=True, return_tensors="pt", do_convert_rgb=True
            ).pixel_values
            for item in inputs
        ]
        return [to_device(each.to(dtype), self._device) for each in pixels]

    def encode(self, read: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The tokens of the references of each input: (references, `num_tokens`, joint_attention_dim).

        Each input is encoded alone, as in diffusers: a batch would round differently.
        """
        self._enter()
        return [
            self._prior.image_embedder(self._prior.image_encoder(pixels).last_hidden_state).image_embeds
            for pixels in read
        ]


def with_unread(inputs: Sequence[ModelInput], encoded: Sequence[Encoding], zeros: Encoding) -> list[Encoding]:
    """The encoding of each input: one of `encoded`, in order, or `zeros` for a prompt that is not read."""
    left = iter(encoded)
    return [next(left) if item.reads_prompt else zeros for item in inputs]


def joined_prompt(conditioning: Conditioning, use: ReduxUse) -> Encoding:
    """The tokens of prompt and references, multiplied by their factors, and the pooled embedding.

    diffusers adds up the results of several references: so the tokens of the prompt count once for each of them.
    """
    tokens, pooled, pictures = conditioning.prompt_embeds, conditioning.pooled_embeds, conditioning.pictures
    if pictures is None:
        return tokens, pooled
    number = len(pictures)
    joined = torch.cat([tokens.expand(number, *tokens.shape), pictures], dim=1)
    # diffusers multiplies by a tensor of this dtype, so the factor is rounded to it first.
    scale, pooled_scale = (float(torch.tensor(each, dtype=tokens.dtype)) for each in (use.scale, use.pooled_scale))
    return (joined * scale).sum(dim=0), (pooled.expand(number, -1) * pooled_scale).sum(dim=0)
