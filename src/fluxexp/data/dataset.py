"""What every dataset looks like to the rest of the program."""

from __future__ import annotations

from typing import Protocol

from fluxexp.records import Sample


class Dataset(Protocol):
    """Samples by index, read when they are asked for.

    Both methods may be called from several threads at once. An index outside `range(len(dataset))` is an IndexError.
    """

    def __len__(self) -> int:
        """Number of samples, at least 1."""
        ...

    def key(self, index: int) -> str:
        """Name of a sample, unique in the dataset. Reads and decodes no image."""
        ...

    def identity(self, index: int) -> str:
        """What a sample says besides its pictures, as a short hash: if it changes, what was made of it is outdated.

        Reads no image and raises nothing; pictures that change under the same path go unnoticed.
        """
        ...

    def size(self, index: int) -> tuple[int, int] | None:
        """Height and width in pixels as far as they are known without decoding a picture; raises nothing.

        For estimates of what a sample will cost: where a picture is turned when it is read, they may be swapped.
        """
        ...

    def load(self, index: int) -> Sample:
        """Read and decode a sample.

        Raises:
            SampleError: for anything wrong with this one sample; its message names the file or the row.
        """
        ...
