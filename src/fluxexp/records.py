"""The basic values of the project: sample, point, task and record, and the keys that name them.

This module knows neither torch nor files nor ranks. A key depends only on content, never on a rank, a world size, a
batch or a clock. So a run can continue on any number of devices, and a task gets the same noise on all of them.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    from PIL.Image import Image

RECORD_VERSION = 1
"""Version of the manifest's and the summary's schema (docs/run-directory.md)."""

Status = Literal["ok", "failed"]
JsonText = str | bytes
_UNSAFE = re.compile(r"[^A-Za-z0-9_]+")
_quote = json.encoder.encode_basestring_ascii


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One item of a dataset, read and decoded.

    `image`, `mask`, `control_image` and `truth` (the ground truth) have the same size. They are RGB, except for `mask`,
    which is L with 0 (keep) and 255 (paint). Samples of a text-to-image dataset do not have them.
    `control_image` is what the result has to follow: outlines, depth or a pose.
    `references` are RGB pictures of any size that the model looks at.
    `opacity` (mode L) is how much of the result is pasted, for a mask with a soft border; `mask` is where it is not 0.
    `rgba` is the image with its transparency, if it has transparent pixels; `image` has a white background there.
    `icc_profile` describes the colors of `image`; None means sRGB.
    `size` is the (height, width) in pixels that the dataset asks for, or None.
    `prompt_2` is T5's prompt, if it is not that of CLIP. `negative_prompt` is the prompt of the second pass. None means
    the value of the config.
    `traits` are facts about the sample that a metric can check (for `dataset=shapes`: shape and color).
    """

    key: str
    prompt: str
    prompt_2: str | None = None
    negative_prompt: str | None = None
    image: Image | None = None
    mask: Image | None = None
    truth: Image | None = None
    opacity: Image | None = None
    rgba: Image | None = None
    icc_profile: bytes | None = None
    control_image: Image | None = None
    references: tuple[Image, ...] = ()
    size: tuple[int, int] | None = None
    traits: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What was changed when the sample was read, for its record."""


@dataclass(frozen=True, slots=True)
class LoraUse:
    """A LoRA of a point: the path of its file, and the factor of what it adds to the weights."""

    path: str
    scale: float


@dataclass(frozen=True, slots=True)
class SampleLora:
    """What a sample says of its LoRA. None: the value of the config."""

    path: str | None
    scale: float | None


@dataclass(frozen=True, slots=True)
class ReduxUse:
    """How a point uses the tokens of a reference as a part of the prompt (FLUX.1 Redux)."""

    reads_prompt: bool = True
    """Whether the text encoders read the prompt. If not, their embeddings are zeros."""
    scale: float = 1.0
    """Factor of the tokens of prompt and reference."""
    pooled_scale: float = 1.0
    """Factor of the pooled embedding."""


@dataclass(frozen=True, slots=True)
class IpAdapterUse:
    """How much a point uses the picture of an IP-Adapter."""

    scale: float = 1.0
    layer_scales: tuple[float, ...] = ()
    """A further factor for each double block. Empty: 1 for all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlUse:
    """How a point uses the ControlNet of its model. A model without one ignores it."""

    scale: float = 1.0
    """Factor of what the ControlNet adds to the transformer's blocks."""
    start: float = 0.0
    """Fraction of the steps after which it begins to add something."""
    end: float = 1.0
    """Fraction of the steps after which it adds nothing more."""
    mode: int | None = None
    """Kind of the control image, for a ControlNet of several kinds (Union). None: it has one kind."""

    @property
    def span(self) -> tuple[float, float] | None:
        """Between which fractions of the steps the ControlNet is computed; None: at no step."""
        return (self.start, self.end) if self.scale else None

    def scales(self, steps: int) -> list[float]:
        """The factor at each step that is run: `scale`, or 0 before `start` and after `end`, as in diffusers."""
        return [
            0.0 if number / steps < self.start or (number + 1) / steps > self.end else self.scale
            for number in range(steps)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One setting of the sampling parameters. `height` and `width` are in pixels; None means the size of the sample."""

    scheduler: str
    shift: float | None
    """Shift of the timesteps; None means the default of the model."""
    steps: int
    guidance: float
    seed: int
    strength: float
    height: int | None
    width: int | None
    max_sequence_length: int | None
    lora: tuple[LoraUse, ...] = ()
    """The LoRAs that change the model's weights, in order. A scale of 0 is allowed, and changes nothing."""
    true_cfg_scale: float = 1.0
    """Weight of the prompt against the negative prompt. At 1 there is no second pass."""
    negative_prompt: str | None = None
    """Of samples without one of their own. None: they have none."""
    prompt_2: str | None = None
    """T5's prompt of samples without one of their own. None: the prompt of CLIP."""
    redux: ReduxUse = ReduxUse()
    """Only families with Redux use it."""
    ip_adapter: IpAdapterUse = IpAdapterUse()
    """Only models with an IP-Adapter use it."""
    control: ControlUse = ControlUse()

    @property
    def makes_second_pass(self) -> bool:
        """Whether each step evaluates the transformer once more, with a negative prompt."""
        return self.true_cfg_scale > 1


@dataclass(frozen=True, slots=True)
class Task:
    """One image to make: image `image_index` of the sample at `index` of the dataset, at `point`."""

    key: str
    sample_key: str
    index: int
    """Index of the sample in the dataset."""
    image_index: int
    """Below `sampling.images_per_sample`."""
    seed: int
    """Seed of the task's own generator: `task_seed` of the point's seed."""
    point: Point


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One line of the manifest: the result of one attempt at a task (docs/run-directory.md)."""

    key: str
    sample_key: str
    status: Status
    file: str | None
    error: str | None
    prompt: str | None
    seed: int
    variant: int
    """The image index of the task."""
    steps: int
    guidance: float
    height: int | None
    width: int | None
    covered: float | None
    rank: int
    device: str
    batch_size: int | None
    seconds: Mapping[str, float]
    attempt: int
    computed_steps: int | None = None
    """Number of full denoiser evaluations. A step cache makes it smaller than the number of steps; a second pass
    doubles it."""
    context_size: int = 1
    """Number of ranks that made the image together."""
    t5_tokens_cut: int | None = None
    """Number of tokens at the end of the prompt that T5 did not read. None: unknown, or the attempt failed."""
    clip_tokens_cut: int | None = None
    """The same for CLIP, whose limit is much lower."""
    inputs: str | None = None
    """Hash of the content of the sample's files, except the ground truth. None if it has no files, if a file cannot be
    read, or if an older fluxexp wrote the record."""
    notes: Sequence[str] = field(default_factory=list)
    """What a user should know of the result: an input was changed to be read, or the image has only one color."""
    bytes: int | None = None
    """Size of the image file. A file of another size is not this result. None: a failed attempt, or an older record."""
    prompt_2: str | None = None
    """T5's prompt. None: it is `prompt`, or the sample could not be read."""
    negative_prompt: str | None = None
    """None: there was no second pass, or the sample could not be read."""
    true_cfg_scale: float = 1.0
    negative_t5_tokens_cut: int | None = None
    """As `t5_tokens_cut`, for the negative prompt. None: there was no second pass, too."""
    negative_clip_tokens_cut: int | None = None
    version: int = RECORD_VERSION

    @classmethod
    def of(cls, task: Task, *, error: str | None, rank: int, device: str, attempt: int, inputs: str | None) -> Record:
        """The record of an attempt at `task` that made no image (yet): without size, times and file."""
        return cls(
            key=task.key,
            sample_key=task.sample_key,
            status="ok" if error is None else "failed",
            file=None,
            error=error,
            prompt=None,
            seed=task.seed,
            variant=task.image_index,
            steps=task.point.steps,
            guidance=task.point.guidance,
            height=None,
            width=None,
            covered=None,
            rank=rank,
            device=device,
            batch_size=None,
            seconds={},
            attempt=attempt,
            inputs=inputs,
            true_cfg_scale=task.point.true_cfg_scale,
        )

    def to_json(self) -> str:
        """One line of JSON, without the newline."""
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":"))

    @staticmethod
    def from_json(line: JsonText) -> Record:
        """Inverse of `to_json`. Ignores keys of a later version. Raises ValueError if `line` is not a record."""
        try:
            try:
                return _decoder().decode(line)
            except ValueError:
                return _decoder().decode(without_surrogates(line))
        except RecursionError as error:
            raise ValueError(str(error)) from None


def without_surrogates(line: JsonText) -> bytes:
    """`line` with "?" for halves of surrogate pairs, which msgspec refuses. Raises ValueError if it is not JSON."""
    return json.dumps(json.loads(line), ensure_ascii=False).encode(errors="replace")


@cache
def _decoder() -> msgspec.json.Decoder[Record]:
    """Checks the types of all fields."""
    return msgspec.json.Decoder(Record)


def content_hash(payload: Any, length: int = 16) -> str:
    """First `length` hex digits of the SHA-256 of `payload` as canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(payload, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def slug(text: str, length: int = 48) -> str:
    """`text` as a part of a file name: ASCII letters, digits, `-` and `_`, not more than `length` characters."""
    is_ascii = text.isascii()
    if is_ascii and "--" not in text and text.replace("-", "").replace("_", "").isalnum():
        return text.strip("-")[-length:].strip("-")  # nothing to replace: five times faster than the pattern
    if not is_ascii:
        text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return _UNSAFE.sub("-", text).strip("-")[-length:].strip("-")


def task_key(fingerprint: str, sample_key: str, image_index: int, identity: str = "") -> str:
    """Name of a task: a readable part, and a hash (64 bits) that makes it unique.

    `identity` is a hash of the sample's content other than its key. So another caption makes another task, with the
    same noise.
    """
    # The text is that of `content_hash([fingerprint, sample_key, image_index, identity])`. A resume of a million tasks
    # makes a million keys, and `json.dumps` would take most of its time.
    text = f"[{_quote(fingerprint)},{_quote(sample_key)},{image_index},{_quote(identity)}]"
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    readable = slug(sample_key)
    return f"{readable}-{digest}" if readable else digest


def task_seed(seed: int, sample_key: str, image_index: int) -> int:
    """Seed of a task's generator, in [0, 2**63). It depends only on the run's seed, the sample and the image index.

    It does not depend on steps, guidance or scheduler, so that the points of a sweep are compared on the same noise.
    """
    digest = hashlib.sha256(json.dumps([seed, sample_key, image_index]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
