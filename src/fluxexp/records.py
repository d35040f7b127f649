"""The words of the project as values: sample, point, task and record, and the keys that name them.

Knows no torch, no files and no ranks. A key is made of content alone, never of a rank, a world size, a batch or a
clock, so that a run continues on any number of devices and a task gets the same noise on all of them.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    from PIL.Image import Image

RECORD_VERSION = 1
"""Version of the manifest's and the summary's schema (docs/run-directory.md)."""

Status = Literal["ok", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One item of a dataset, read and decoded.

    `image`, `mask` and `truth` have the same size. `image` and `truth` are RGB; `mask` is L with 0 (keep) and
    255 (paint). A text-to-image dataset gives samples without any of them.
    `size` is the (height, width) in pixels that the dataset asks for, if it does.
    `traits` are facts about the sample that a metric may check (for `dataset=shapes`: shape and colour).
    """

    key: str
    prompt: str
    image: Image | None = None
    mask: Image | None = None
    truth: Image | None = None
    size: tuple[int, int] | None = None
    traits: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One setting of the sampling parameters. `height` and `width` are pixels; None follows the sample."""

    scheduler: str
    shift: float | None
    """Of the timesteps; None is the model's own."""
    steps: int
    guidance: float
    seed: int
    strength: float
    height: int | None
    width: int | None
    max_sequence_length: int | None


@dataclass(frozen=True, slots=True)
class Task:
    """One image to make: image number `variant` of the sample at `index` of the dataset, at `point`."""

    key: str
    sample_key: str
    index: int
    variant: int
    seed: int
    """Of the task's own generator: `task_seed` of the point's seed."""
    point: Point


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One line of the manifest: what became of one attempt at a task (docs/run-directory.md)."""

    key: str
    sample_key: str
    status: Status
    file: str | None
    error: str | None
    prompt: str | None
    seed: int
    variant: int
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
    """Evaluations of the whole denoiser: fewer than all where a step cache left some out."""
    context_size: int = 1
    """Ranks that made the image together."""
    version: int = RECORD_VERSION

    def to_json(self) -> str:
        """One line of JSON, without the newline."""
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Inverse of `to_json`; ValueError for anything else. Keys of a later version are ignored."""
        values = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError(f"a record is a JSON object, not {type(values).__name__}")
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        try:
            return cls(**known)
        except TypeError as error:
            raise ValueError(str(error)) from None


def content_hash(payload: Any, length: int = 16) -> str:
    """First `length` hex digits of the SHA-256 of `payload` as canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(payload, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def slug(text: str, length: int = 48) -> str:
    """`text` as a part of a file name: ASCII letters, digits, `-` and `_`, at most `length` characters."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_]+", "-", ascii_text).strip("-")[-length:].strip("-")


def task_key(fingerprint: str, sample_key: str, variant: int, identity: str = "") -> str:
    """Name of a task: readable in front, unique by the hash behind (64 bits).

    `identity` is a hash of what the sample says besides its key: another caption makes another task, on the same noise.
    """
    digest = content_hash([fingerprint, sample_key, variant, identity])
    readable = slug(sample_key)
    return f"{readable}-{digest}" if readable else digest


def task_seed(seed: int, sample_key: str, variant: int) -> int:
    """Seed of a task's generator, in [0, 2**63): a function of the run's seed, the sample and the variant only.

    Steps, guidance and scheduler are left out on purpose: points of a sweep are compared on the same noise.
    """
    digest = hashlib.sha256(json.dumps([seed, sample_key, variant]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
