"""Images that denoising starts from or looks at. Each is encoded when needed, once for all tasks of its sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

import torch
from PIL.Image import Image

from fluxexp.models.flux1.image_encoding import ImageEncoder, PixelTable
from fluxexp.models.flux1.latents import BatchNoise


@dataclass(slots=True, weakref_slot=True, eq=False)
class SourceImage:
    """A picture at the working size, and the posterior of its latents once a batch has needed it."""

    picture: Image
    posterior: torch.Tensor | None = None
    """Mean and log variance: (1, 2 * latent channels, H / scale, W / scale)."""


class SourceImages:
    """Encodes images for all strategies of a variant, so that strategies which need the same image share its posterior.

    Each image is encoded alone, as in diffusers: a batch would round differently.

    Args:
        pixels: for RGB images.
        encoder: of the model.
        noise_name: name of the random tensor that samples from the posterior (`Variant.noise_order`). None: the latents
            are the mean of the posterior.
    """

    def __init__(self, pixels: PixelTable, encoder: ImageEncoder, noise_name: str | None) -> None:
        self._pixels = pixels
        self._encoder = encoder
        self._noise_name = noise_name
        # By the identity of the picture. A SourceImage keeps its picture, so the number is never that of another one.
        self._known: WeakValueDictionary[int, SourceImage] = WeakValueDictionary()

    def of(self, picture: Image) -> SourceImage:
        """The source image of `picture`: the same object for the same picture, as long as a conditioning has it."""
        found = self._known.get(id(picture))
        if found is None:
            found = self._known[id(picture)] = SourceImage(picture)
        return found

    def latents(self, images: Sequence[SourceImage], noise: BatchNoise) -> torch.Tensor:
        """Latents without noise: (B, latent channels, H / scale, W / scale)."""
        posteriors = torch.cat([self.encode(image) for image in images])
        if self._noise_name is None:
            return self._encoder.mode(posteriors)
        return self._encoder.sample(posteriors, noise(self._noise_name))

    def encode(self, image: SourceImage) -> torch.Tensor:
        """The posterior of `image`, which keeps it."""
        if image.posterior is None:
            image.posterior = self._encoder.posterior(self._pixels([image.picture]).to(self._encoder.dtype))
        return image.posterior
