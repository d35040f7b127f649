"""IP-Adapter: the double blocks also attend to a few tokens of a picture. The same bits as in diffusers.

The library loads the weights: attention processors with projections to keys and values, and a projection of CLIP's
image embedding to tokens (`FluxIPAdapterMixin`). Keys and values do not change from step to step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from PIL import Image

from fluxexp.errors import SampleError
from fluxexp.models.base import ModelInput
from fluxexp.models.flux1.latents import to_device
from fluxexp.records import IpAdapterUse

INPUT = "ip_adapter"
"""Name of `PictureTokens` among the inputs of a denoiser."""
BlockPicture = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""What one block attends to: keys and values (B, picture tokens, heads, head dimension), and the factor of what they
add, float32 (B, 1, 1)."""


@dataclass(frozen=True, slots=True)
class PictureTokens:
    """The pictures of a batch."""

    embeds: torch.Tensor
    """CLIP's image embeddings, (B, 1, projection dimension)."""
    scales: torch.Tensor
    """The factor of each image and double block, float32 (B, double blocks)."""

    def followed_by(self, other: PictureTokens) -> PictureTokens:
        """The rows of this, then those of `other`."""
        return PictureTokens(torch.cat((self.embeds, other.embeds)), torch.cat((self.scales, other.scales)))


class IpAdapter:
    """Encodes pictures for a transformer with an IP-Adapter.

    Args:
        pipeline: of diffusers, with image encoder and feature extractor.
        device: where the encoder runs.
        enter: loads its weights to the device if they are streamed.
    """

    def __init__(self, pipeline: Any, device: torch.device, enter: Callable[[], None]) -> None:
        self._pipeline = pipeline
        self._device = device
        self._enter = enter
        self._black: torch.Tensor | None = None

    @property
    def image_encoder(self) -> Any:
        """CLIP, with weights."""
        return self._pipeline.image_encoder

    def read(self, inputs: Sequence[ModelInput]) -> list[torch.Tensor]:
        """The host's part: the first reference of each input at the size that CLIP sees, (1, 3, side, side)."""
        return [self._pixels(item.references[0]) for item in inputs]

    def encode(self, read: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """CLIP's embedding of each picture, (projection dimension,). Each is encoded alone, as in diffusers."""
        self._enter()
        return [self._pipeline.image_encoder(pixels).image_embeds[0] for pixels in read]

    def black(self) -> torch.Tensor:
        """The embedding of a black picture: diffusers uses it in the pass with the negative prompt."""
        if self._black is None:
            side = self._pipeline.image_encoder.config.image_size
            (self._black,) = self.encode([self._pixels(Image.new("RGB", (side, side)))])
        return self._black

    def tokens(self, embeds: Sequence[torch.Tensor], uses: Sequence[IpAdapterUse]) -> PictureTokens:
        """The pictures of a batch, each with the factors of its point."""
        number = self._pipeline.transformer.config.num_layers
        scales = torch.tensor([_scales(use, number) for use in uses], dtype=torch.float32)
        return PictureTokens(torch.stack(list(embeds))[:, None], to_device(scales, self._device))

    def _pixels(self, picture: Image.Image) -> torch.Tensor:
        pixels = self._pipeline.feature_extractor(picture, return_tensors="pt").pixel_values
        return to_device(pixels.to(self._pipeline.image_encoder.dtype), self._device)


def _scales(use: IpAdapterUse, number: int) -> list[float]:
    if not use.layer_scales:
        return [use.scale] * number
    if len(use.layer_scales) != number:
        raise SampleError(
            f"ip_adapter.layer_scales has {len(use.layer_scales)} values, but the model has {number} double blocks"
        )
    return [use.scale * own for own in use.layer_scales]


def has_ip_adapter(transformer: Any) -> bool:
    """Whether an IP-Adapter is loaded into a transformer of diffusers."""
    return getattr(transformer, "encoder_hid_proj", None) is not None


def ip_layers(block: Any) -> list[torch.nn.Module]:
    """The layers of an IP-Adapter in a block. They are used once per batch, outside of the block."""
    processor = block.attn.processor
    return [processor] if isinstance(processor, FluxIPAdapterAttnProcessor) else []


def set_library_scales(transformer: Any, scales: torch.Tensor) -> None:
    """Let the library's processors use a factor for each image: float32 (B, double blocks).

    There the factor is a Python number. PyTorch multiplies values in half precision by such a number in float32 and
    rounds once. So it does with a float32 tensor, because the library adds the product to a tensor in half precision.
    """
    for number, block in enumerate(transformer.transformer_blocks):
        block.attn.processor.scale = [scales[:, number, None, None]]


def hoisted(transformer: Any, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
    """What all blocks attend to, as tensors that a captured step takes: nothing, or

    - keys and values (double blocks, 2, B, picture tokens, heads, head dimension), and
    - their factors, float32 (double blocks, B, 1, 1).
    """
    pictures: PictureTokens | None = inputs.get(INPUT)
    if pictures is None:
        return ()
    (tokens,) = transformer.encoder_hid_proj([pictures.embeds])
    heads = [
        torch.stack([_heads(block.attn, layers[0], tokens) for layers in _key_and_value_layers(block)])
        for block in transformer.transformer_blocks
    ]
    return torch.stack(heads), pictures.scales.t()[..., None, None].contiguous()


def _key_and_value_layers(block: Any) -> tuple[Any, Any]:
    processor = block.attn.processor
    return processor.to_k_ip, processor.to_v_ip


def _heads(attn: Any, layer: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    projected: torch.Tensor = layer(tokens)
    return projected.view(len(tokens), -1, attn.heads, attn.head_dim)


def of_block(pictures: Sequence[torch.Tensor], number: int) -> BlockPicture | None:
    """The part of a block of the result of `hoisted`; None if there is no IP-Adapter."""
    if not pictures:
        return None
    heads, scales = pictures
    return heads[number, 0], heads[number, 1], scales[number]


def of_rows(pictures: Sequence[torch.Tensor], rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The result of `hoisted` for some images of the batch."""
    return (pictures[0][:, :, rows], pictures[1][:, rows]) if pictures else ()


def attended_picture(attn: Any, query: torch.Tensor, picture: BlockPicture) -> torch.Tensor:
    """What a block adds to its image tokens: (B, image tokens, width).

    Args:
        attn: of the block.
        query: of the image tokens, normalized and not rotated (B, image tokens, heads, head dimension).
        picture: what the block attends to.
    """
    key, value, scale = picture
    found = dispatch_attention_fn(query, key, value, backend=attn.processor._attention_backend)
    attended: torch.Tensor = found.flatten(2, 3).to(query.dtype)
    return (attended.float() * scale).to(attended.dtype)
