"""The model protocols: condition, denoise, decode. They know no ranks, files or datasets."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from fluxexp.config.families import Family, Input
from fluxexp.errors import SampleError
from fluxexp.records import LoraUse, Point

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from fluxexp.config.schema import ContextKind
    from fluxexp.parallel.collectives import Collectives


@dataclass(frozen=True, slots=True)
class PromptPair:
    """Different texts for the two text encoders. diffusers calls them `prompt` and `prompt_2`."""

    clip: str
    t5: str


Prompt = str | PromptPair
"""A text for both text encoders, or one for each."""


def clip_text(prompt: Prompt) -> str:
    """The text that CLIP reads."""
    return prompt if isinstance(prompt, str) else prompt.clip


def t5_text(prompt: Prompt) -> str:
    """The text that T5 reads."""
    return prompt if isinstance(prompt, str) else prompt.t5


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInput:
    """A sample at its working size: pictures in RGB, and `mask` in L with 255 in the masked region and 0 outside.

    All have width x height pixels, multiples of 16. What the sample does not have is None.
    """

    prompt: Prompt
    height: int
    width: int
    image: Image | None = None
    mask: Image | None = None
    control_image: Image | None = None
    references: tuple[Image, ...] = ()
    negative_prompt: str | None = None
    """Of the second pass. None: there will be no second pass."""
    reads_prompt: bool = True
    """Whether the text encoders read the prompt. Only families with Redux can do without."""
    lora: tuple[LoraUse, ...] = ()
    """The LoRAs of the point. Those that change CLIP change the encoded prompt."""

    @property
    def inputs(self) -> frozenset[Input]:
        """What the sample has besides its prompt."""
        values: dict[Input, Image | str | None] = {
            "image": self.image,
            "mask": self.mask,
            "control_image": self.control_image,
            "references": next(iter(self.references), None),
            "negative_prompt": self.negative_prompt,
        }
        return frozenset(name for name, value in values.items() if value is not None)


def require_inputs(item: ModelInput, family: Family) -> None:
    """Check that a sample has the inputs that its family needs, and not more than it can use.

    Raises:
        SampleError: an input is missing, or there are too many references.
    """
    missing = sorted(family.required - item.inputs)
    if missing:
        raise SampleError(
            f"the sample has no {' and no '.join(missing)}, but model.family={family.name} "
            f"{family.purpose}: use a dataset that has them"
        )
    if len(item.references) > family.max_references:
        raise SampleError(
            f"the sample has {len(item.references)} references, but model.family={family.name} looks at "
            f"{family.max_references}: give the sample one reference, for example a picture that shows all side by side"
        )


@dataclass(frozen=True, slots=True)
class Job:
    """One image of a batch: its conditioning, the point it is made at and the seed of its generator."""

    conditioning: Any
    """Result of the same model's `condition` for the sample."""
    point: Point
    seed: int
    noise_sample: Any = None
    """Result of the same model's `sample_noise` for the seed and the size; None: the model samples it when needed."""
    is_warmup: bool = False
    """Whether the image is only made to warm up, and not written."""
    run: int | None = None
    """Number of the run that the image belongs to, in a sweep."""
    key: str | None = None
    """Key of the task, if the image belongs to one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CutTokens:
    """Tokens at the end of a prompt, beyond the limits of the text encoders, which these do not read."""

    t5: int
    clip: int


@dataclass(frozen=True, slots=True)
class CutTexts:
    """What the text encoders do not read of the texts of one image. None: unknown, or there is no such text."""

    prompt: CutTokens | None
    negative_prompt: CutTokens | None = None


class Decoded(Protocol):
    """Pictures that the device may still be computing."""

    def images(self) -> list[Image | None]:
        """RGB images of the working size; None where a latent or pixel is not finite.

        Waits for the device. May be called on any thread.
        """
        ...


@dataclass(frozen=True, slots=True)
class DecodedImages:
    """Pictures that are already on the host."""

    pictures: list[Image | None]

    def images(self) -> list[Image | None]:
        """See `Decoded`."""
        return self.pictures


class Model(Protocol):
    """A loaded model on one device. Not thread-safe: one worker thread calls it."""

    device: torch.device
    applied_optimizations: list[str]
    """Optimizations that were applied, in order."""
    skipped_optimizations: dict[str, str]
    """Optimizations that were asked for and could not be applied, each with the reason."""
    conditionings: OrderedDict[Hashable, Any]
    """Results of `condition` for samples that may come again, as further images or at other points of a sweep."""
    compiles_shapes: bool
    """Whether the first batch of a new shape compiles, and so takes much longer than the next."""

    def condition(self, inputs: Sequence[ModelInput], max_sequence_length: int | None) -> list[Any]:
        """Compute what the denoiser needs besides noise, for each input. The rest of the point does not change it.

        Inputs share height and width. They are computed as one batch, or one for each set of LoRAs.

        Raises:
            SampleError: an input lacks a picture that the model needs.
        """
        ...

    def sample_noise(self, seed: int, height: int, width: int) -> Any:
        """Draw the random tensors of one image of this size. This is work for the host, so it can be done ahead."""
        ...

    def denoise(self, jobs: Sequence[Job]) -> Any:
        """Compute the latents of a batch: one size, scheduler, strength and number of steps; any guidance and seeds.

        Either all images have a second pass, each with its own `true_cfg_scale`, or none has.
        """
        ...

    def decode(self, latents: Any) -> Decoded:
        """Decode latents to pictures. Like the other stages, it launches work and does not wait for the device."""
        ...

    def free_memory(self) -> None:
        """Free caches and captured graphs. Later calls make them again."""
        ...

    @property
    def streaming_bytes(self) -> int:
        """The most device memory that streamed weights will take, in bytes."""
        ...

    def streams_text_encoders(self, prompts: Sequence[Prompt], max_sequence_length: int | None) -> bool:
        """Whether encoding these prompts streams the text encoders to the device.

        If so, the caller should encode later prompts at the same time (`encode_prompts`).
        """
        ...

    def encode_prompts(self, prompts: Sequence[Prompt], max_sequence_length: int | None) -> Any:
        """Encode prompts without LoRAs, so that the text cache holds them if there is one."""
        ...

    def changes_text(self, lora: Sequence[LoraUse]) -> bool:
        """Whether these LoRAs change the encoding of prompts. Raises a SampleError if a file cannot be used."""
        ...

    def cut_tokens(self, prompts: Sequence[Prompt], max_sequence_length: int | None) -> list[CutTokens | None]:
        """Count the tokens of each prompt that no encoding contains. None: the model has no text encoders.

        Work for the host alone.
        """
        ...

    def text_tokens(self, prompt: Prompt, max_sequence_length: int | None) -> int:
        """Number of tokens that the denoiser sees of a prompt, padding included. A batch shares this number.

        FLUX.1 pads all prompts to one length. The worker calls this often, so a model that must tokenize keeps the
        results.
        """
        ...

    def computed_steps(self, latents: Any) -> list[int]:
        """For each image of `denoise`, how many evaluations ran the whole denoiser, those of a second pass included.

        A step cache skips some.
        """
        ...

    def tokens(self, height: int, width: int, max_sequence_length: int | None) -> int:
        """Tokens of one image at this size, with text. Compute and memory grow with them."""
        ...


class MeasuredModel(Model, Protocol):
    """A model whose step cache MagCache can be calibrated."""

    def measure_ratios(self, batches: Iterable[Sequence[Job]]) -> list[float]:
        """The ratio at each step of the batches' common schedule: the mean over their images. The first ratio is 1.

        Raises:
            ModelError: the model's blocks cannot be called one by one, or its values are not finite.
        """
        ...


class ContextParallelModel(Model, Protocol):
    """A model with which several ranks, each with its own copy, can make an image together.

    `denoise` is `begin` on the rank that has the conditionings, followed by `integrate` on all ranks.
    """

    def enable_context_parallel(self, collectives: Collectives, kind: ContextKind) -> str:
        """Split the work of `integrate` over the ranks of `collectives`. Returns a description for the summary.

        Raises:
            ModelError: this model or its optimizations do not allow it.
        """
        ...

    def disable_context_parallel(self) -> None:
        """Make images on this rank alone again."""
        ...

    def drop_collectives(self) -> None:
        """Drop everything that depends on the collectives, because they will be replaced."""
        ...

    def begin(self, jobs: Sequence[Job]) -> Any:
        """Compute the start of a batch: a value that can be pickled, with tensors on the model's device."""
        ...

    def integrate(self, begun: Any) -> Any:
        """Compute the latents from the result of `begin`. Every rank gets all of them."""
        ...
