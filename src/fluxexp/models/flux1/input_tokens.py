"""Strategy 1 of 4: what the transformer sees in addition to the noisy latents.

Fill and Control add channels to the same tokens. Kontext appends tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL.Image import Image

from fluxexp.models.base import ModelInput
from fluxexp.models.flux1.image_encoding import ImageEncoder, PixelTable
from fluxexp.models.flux1.latents import BatchNoise, pack, position_ids
from fluxexp.models.flux1.source_images import SourceImage, SourceImages


class InputTokens(Protocol):
    """Conditions images, once for all tasks of a sample, and joins the result with the latents at every step."""

    def read(self, inputs: Sequence[ModelInput]) -> Any:
        """Do the host's part of conditioning. It runs before text encoders are launched."""
        ...

    def encode(self, read: Any) -> Sequence[Any]:
        """Encode the result of `read`, as one batch. Returns the conditioning of each input."""
        ...

    def added(self, conditionings: Sequence[Any], noise: BatchNoise) -> torch.Tensor | None:
        """What is joined with the latents of a batch: (B, image tokens, channels), or None."""
        ...

    def join(self, latents: torch.Tensor, added: torch.Tensor | None) -> torch.Tensor:
        """Input tokens of the transformer, from packed latents (B, image tokens, 4 * latent channels)."""
        ...

    def prediction(self, predicted: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """The part of the transformer's output that belongs to `latents`."""
        ...

    def position_ids(self, rows: int, columns: int) -> torch.Tensor:
        """Positions of all image tokens for RoPE, float32 of shape (tokens, 3).

        Args:
            rows: of tokens of the image.
            columns: of tokens of the image.
        """
        ...


class NoInputTokens:
    """The transformer sees the noisy latents alone."""

    def read(self, inputs: Sequence[ModelInput]) -> int:
        """Only the number of inputs."""
        return len(inputs)

    def encode(self, read: int) -> Sequence[None]:
        """Nothing for each input."""
        return [None] * read

    def added(self, conditionings: Sequence[None], noise: BatchNoise) -> None:
        """Nothing."""

    def join(self, latents: torch.Tensor, added: torch.Tensor | None) -> torch.Tensor:
        """The latents themselves."""
        return latents

    def prediction(self, predicted: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """All of it."""
        return predicted

    def position_ids(self, rows: int, columns: int) -> torch.Tensor:
        """Those of the image."""
        return position_ids(rows, columns)


class _ChannelTokens:
    """What is added are channels of the image's tokens."""

    def join(self, latents: torch.Tensor, added: torch.Tensor | None) -> torch.Tensor:
        """Latents first, then what was added, along the channels."""
        assert added is not None
        return torch.cat((latents, added), dim=2)

    def prediction(self, predicted: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """All of it: the number of tokens is that of the latents."""
        return predicted

    def position_ids(self, rows: int, columns: int) -> torch.Tensor:
        """Those of the image."""
        return position_ids(rows, columns)


@dataclass(frozen=True, slots=True)
class MaskedImage:
    """A masked image, encoded. The posterior is kept instead of latents, because each task samples its own."""

    posterior: torch.Tensor
    """Mean and log variance of the masked image's latents: (2 * latent channels, H / scale, W / scale)."""
    mask: torch.Tensor
    """The packed mask: (image tokens, 4 * scale ** 2), 1 in the masked region."""


class ConcatMaskedImage(_ChannelTokens):
    """Fill: latents of the masked image and all pixels of the mask are channels of each token."""

    def __init__(self, image_pixels: PixelTable, mask_pixels: PixelTable, encoder: ImageEncoder, scale: int) -> None:
        self._image_pixels = image_pixels
        self._mask_pixels = mask_pixels
        self._encoder = encoder
        self._scale = scale

    def read(self, inputs: Sequence[ModelInput]) -> tuple[torch.Tensor, torch.Tensor]:
        """Masked pixels (B, 3, H, W) and packed masks (B, image tokens, 4 * scale ** 2), on the device."""
        pixels = self._image_pixels(_pictures(item.image for item in inputs))
        masks = self._mask_pixels(_pictures(item.mask for item in inputs))
        dtype = self._encoder.dtype
        return (pixels * (1 - masks)).to(dtype), pack_masks(masks, self._scale).to(dtype)

    def encode(self, read: tuple[torch.Tensor, torch.Tensor]) -> Sequence[MaskedImage]:
        """The posterior of each masked image, and its packed mask."""
        masked, packed_masks = read
        posteriors = self._encoder.posterior(masked)
        return [MaskedImage(posterior, mask) for posterior, mask in zip(posteriors, packed_masks, strict=True)]

    def added(self, conditionings: Sequence[MaskedImage], noise: BatchNoise) -> torch.Tensor:
        """Masked latents and masks: (B, image tokens, 4 * latent channels + 4 * scale ** 2)."""
        posteriors = torch.stack([each.posterior for each in conditionings])
        latents = self._encoder.sample(posteriors, noise("masked image posterior"))
        return torch.cat((pack(latents), torch.stack([each.mask for each in conditionings])), dim=-1)


class ConcatControl(_ChannelTokens):
    """Control: latents of the control image are channels of each token."""

    def __init__(self, pixels: PixelTable, encoder: ImageEncoder) -> None:
        self._pixels = pixels
        self._encoder = encoder

    def read(self, inputs: Sequence[ModelInput]) -> torch.Tensor:
        """Pixels of the control images (B, 3, H, W), on the device."""
        pixels = self._pixels(_pictures(item.control_image for item in inputs))
        # diffusers repeats control images, which changes their memory layout. Convolutions round by it.
        return pixels.contiguous().to(self._encoder.dtype)

    def encode(self, read: torch.Tensor) -> Sequence[torch.Tensor]:
        """The posterior of each control image: (2 * latent channels, H / scale, W / scale)."""
        return self._encoder.posterior(read).unbind()

    def added(self, conditionings: Sequence[torch.Tensor], noise: BatchNoise) -> torch.Tensor:
        """Control latents: (B, image tokens, 4 * latent channels)."""
        return pack(self._encoder.sample(torch.stack(list(conditionings)), noise("control posterior")))


class ControlPixels:
    """A ControlNet that reads pixels (XLabs): the control images themselves, without the VAE and without noise."""

    def __init__(self, pixels: PixelTable, dtype: torch.dtype) -> None:
        self._pixels = pixels
        self._dtype = dtype

    def read(self, inputs: Sequence[ModelInput]) -> torch.Tensor:
        """Pixels of the control images (B, 3, H, W), on the device."""
        return self._pixels(_pictures(item.control_image for item in inputs)).contiguous().to(self._dtype)

    def encode(self, read: torch.Tensor) -> Sequence[torch.Tensor]:
        """The pixels of each control image (3, H, W)."""
        return read.unbind()

    def added(self, conditionings: Sequence[torch.Tensor], noise: BatchNoise) -> torch.Tensor:
        """Pixels of the control images: (B, 3, H, W)."""
        return torch.stack(list(conditionings))


class AppendContext:
    """Kontext: the tokens of a picture of the working size follow those of the image. Their first position id is 1.

    Args:
        images: encodes the pictures. In Kontext, latents are the mean of the posterior.
        context: the picture of an input.
    """

    def __init__(self, images: SourceImages, context: Callable[[ModelInput], Image]) -> None:
        self._images = images
        self._context = context

    def read(self, inputs: Sequence[ModelInput]) -> Sequence[SourceImage]:
        """The pictures, which are not encoded yet."""
        return [self._images.of(self._context(item)) for item in inputs]

    def encode(self, read: Sequence[SourceImage]) -> Sequence[SourceImage]:
        """The pictures with their posteriors."""
        for image in read:
            self._images.encode(image)
        return read

    def added(self, conditionings: Sequence[SourceImage], noise: BatchNoise) -> torch.Tensor:
        """Latents of the pictures: (B, image tokens, 4 * latent channels)."""
        return pack(self._images.latents(conditionings, noise))

    def join(self, latents: torch.Tensor, added: torch.Tensor | None) -> torch.Tensor:
        """The tokens of the image first, then those of the picture."""
        assert added is not None
        return torch.cat((latents, added), dim=1)

    def prediction(self, predicted: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """The tokens of the image."""
        return predicted[:, : latents.shape[1]]

    def position_ids(self, rows: int, columns: int) -> torch.Tensor:
        """Those of the image, and the same with 1 in front for the picture."""
        of_image = position_ids(rows, columns)
        of_picture = of_image.clone()
        of_picture[:, 0] = 1
        return torch.cat((of_image, of_picture))


def pack_masks(masks: torch.Tensor, scale: int) -> torch.Tensor:
    """(B, 1, H, W) to (B, image tokens, 4 * scale ** 2): every pixel of the mask becomes a channel of its token."""
    batch, _, height, width = masks.shape
    rows, columns = height // scale, width // scale
    cells = masks[:, 0].view(batch, rows, scale, columns, scale).permute(0, 2, 4, 1, 3)
    return pack(cells.reshape(batch, scale**2, rows, columns))


def _pictures(images: Iterable[Image | None]) -> list[Image]:
    """`images` as a list; the family's check of its inputs has made sure that none is None."""
    return [image for image in images if image is not None]
