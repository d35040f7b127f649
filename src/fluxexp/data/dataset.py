"""The interface of all datasets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fluxexp.records import Sample, SampleLora


@dataclass(frozen=True, slots=True)
class SamplingColumns:
    """How many samples say something of the second pass themselves."""

    num_negative_prompts: int = 0
    """Number of samples with a negative prompt."""
    num_scales: int = 0
    """Number of samples with a `true_cfg_scale`."""
    num_second_passes: int = 0
    """Number of samples with a `true_cfg_scale` above 1."""


class Dataset(Protocol):
    """Samples by index. A sample is read when it is loaded.

    All methods are thread-safe. `key` and `load` raise IndexError for an index outside `range(len(dataset))`.
    """

    @property
    def notes(self) -> Sequence[str]:
        """What was found when the dataset was opened: skipped files, missing masks and captions, unused columns."""
        ...

    def __len__(self) -> int:
        """Number of samples, at least 1."""
        ...

    def key(self, index: int) -> str:
        """Name of a sample, unique in the dataset. Reads no image."""
        ...

    def identity(self, index: int) -> str:
        """Short hash of a sample's content without its files. Another identity makes another task.

        Reads no image file. Never raises a SampleError.
        """
        ...

    def inputs(self, index: int) -> str | None:
        """Short hash of the content of the files of image, mask, control image and reference.

        If it changes, results of the sample are outdated.

        None if a file cannot be read, or if the sample has no files. Never raises a SampleError.
        """
        ...

    def known_inputs(self, index: int) -> str | None:
        """Like `inputs`, but None if it would need requests over the network, or all bytes of a large dataset.

        Planning and scoring use it. Never raises a SampleError.
        """
        ...

    def truth(self, index: int) -> str | None:
        """Short hash of the content of the ground truth's file. If it changes, scores of the sample are outdated.

        None if the file cannot be read, or if there is none. Never raises a SampleError.
        """
        ...

    def guidance(self, index: int) -> float | None:
        """The guidance scale that the dataset asks for. It replaces `sampling.guidance`. None: it asks for none."""
        ...

    def true_cfg_scale(self, index: int) -> float | None:
        """The scale that the dataset asks for. It replaces `sampling.true_cfg_scale`. None: it asks for none."""
        ...

    @property
    def sampling_columns(self) -> SamplingColumns:
        """Which samples have sampling parameters of their own."""
        ...

    @property
    def has_loras(self) -> bool:
        """Whether a sample may have a LoRA of its own."""
        ...

    def lora(self, index: int) -> SampleLora | None:
        """The LoRA that the dataset asks for. It replaces those of the config. None: it asks for none."""
        ...

    def size(self, index: int) -> tuple[int, int] | None:
        """Height and width in pixels if they are known without decoding an image, else None.

        Use it only to estimate costs: EXIF rotation can swap the two. Never raises a SampleError.
        """
        ...

    def load(self, index: int) -> Sample:
        """Read and decode a sample.

        Raises:
            SampleError: the sample cannot be read. The message names the file or the row.
        """
        ...
