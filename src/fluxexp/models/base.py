"""What a model is to the rest of fluxexp: condition, denoise, decode. Knows no ranks, files or datasets."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from fluxexp.records import Point

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from fluxexp.config.schema import ContextKind
    from fluxexp.parallel.collectives import Collectives


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInput:
    """A sample at its working size: `image` RGB and `mask` L (0 keep, 255 paint), both width x height pixels.

    Both are None for text to image. `height` and `width` are multiples of 16.
    """

    prompt: str
    height: int
    width: int
    image: Image | None = None
    mask: Image | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One image of a batch: its conditioning, the point it is made at and the seed of its generator."""

    conditioning: Any
    """What the same model's `condition` gave for the sample."""
    point: Point
    seed: int
    noise_sample: Any = None
    """What the same model's `draw` gave for the seed and the size; None: it is drawn once it is needed."""
    is_warmup: bool = False
    """Whether the image is thrown away."""
    run: int | None = None
    """Number of the run that it is for, in a sweep."""


class Decoded(Protocol):
    """Pictures that a device may still be working on."""

    def images(self) -> list[Image | None]:
        """RGB images of the working size, None where a latent or pixel is not finite. Waits; on any thread."""
        ...


@dataclass(frozen=True, slots=True)
class DecodedImages:
    """Pictures that are there."""

    pictures: list[Image | None]

    def images(self) -> list[Image | None]:
        """See `Decoded`."""
        return self.pictures


class Model(Protocol):
    """A loaded model on one device. Not thread-safe: one worker thread calls it."""

    device: torch.device
    applied_optimizations: list[str]
    """What was done to the model for speed or memory, in order."""
    skipped_optimizations: dict[str, str]
    """What was asked for and could not be done here, and why."""
    conditionings: OrderedDict[Hashable, Any]
    """What `condition` gave for samples that may come again: as variants, or at other points of a sweep."""
    compiles_shapes: bool
    """Whether the first batch of a new shape compiles, and so takes much longer than the next."""

    def condition(self, inputs: Sequence[ModelInput], max_sequence_length: int | None) -> list[Any]:
        """What the denoiser needs besides noise, one per input, independent of the point's other values.

        Inputs share height and width. Computed as one batch.
        """
        ...

    def sample_noise(self, seed: int, height: int, width: int) -> Any:
        """Random numbers of one image of this size: the host's work, done before it is waited for."""
        ...

    def denoise(self, jobs: Sequence[Job]) -> Any:
        """Latents of a batch. Jobs share size, steps, strength and scheduler; guidance and seed may differ."""
        ...

    def decode(self, latents: Any) -> Decoded:
        """Pictures of latents. Like the other stages it only gives the device work, where that can be."""
        ...

    def free_memory(self) -> None:
        """Give back memory that is kept to be quick."""
        ...

    @property
    def visiting_bytes(self) -> int:
        """Memory of the device that weights which come and go will take, at the most."""
        ...

    def encoders_visit(self, prompts: Sequence[str], max_sequence_length: int | None) -> bool:
        """Whether encoding these brings encoders to the device that leave it again: then others had better be encoded
        with them, by `encode_prompts`.
        """
        ...

    def encode_prompts(self, prompts: Sequence[str], max_sequence_length: int | None) -> Any:
        """Encode prompts, and keep what is kept of them."""
        ...

    def computed_steps(self, latents: Any) -> list[int]:
        """Of each image of `denoise`, the evaluations of the whole denoiser: all, unless a step cache left some out."""
        ...

    def tokens(self, height: int, width: int, max_sequence_length: int | None) -> int:
        """Tokens of one image at this size, text included: what compute and memory are proportional to."""
        ...


class ContextParallelModel(Model, Protocol):
    """A model of which several ranks, with one copy each, can make an image together.

    `denoise` is `begin`, on the rank that has the conditionings, and `integrate`, on all of them.
    """

    def enable_context_parallel(self, collectives: Collectives, kind: ContextKind) -> str:
        """Share the work of `integrate` out to the ranks that `links` are among; in words, what is done.

        Raises:
            ModelError: it cannot be.
        """
        ...

    def disable_context_parallel(self) -> None:
        """Work alone again."""
        ...

    def drop_collectives(self) -> None:
        """Give up what was made with the links: they are about to be made anew."""
        ...

    def begin(self, jobs: Sequence[Job]) -> Any:
        """Where the integration of a batch begins: a value that can be pickled, with tensors on the model's device."""
        ...

    def integrate(self, begun: Any) -> Any:
        """Latents of what `begin` gave: whole, on every rank."""
        ...
