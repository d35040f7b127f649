"""What is made in a measurement: sizes, batches, steps, and the samples themselves, drawn before any clock starts.

Knows no engine. Samples lie in memory, so that no engine's reading of files is measured, and are the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from fluxexp.config.schema import ShapesDatasetConfig
from fluxexp.data import open_dataset
from fluxexp.records import Sample

Size = tuple[int, int]
"""Height and width in pixels."""

_MIXED = ((1, 1), (3, 4), (1, 2), (4, 3), (1, 1), (1, 2))
"""Sides of the mixed dataset's samples, as parts of the largest: (height, width) in quarters or halves of it."""
_GUIDANCE = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One point of the benchmark."""

    name: str
    sizes: tuple[Size, ...]
    """The samples' sizes, repeated in this order."""
    batch: int | None
    """Images at once; None lets the engine choose, or for peers what fluxexp would choose."""
    steps: int
    images: int
    """Of one measured stretch, at the least: stretches are of whole batches, two or more."""
    guidance: float = _GUIDANCE

    @property
    def is_mixed(self) -> bool:
        """Whether samples differ in size."""
        return len(self.sizes) > 1

    @property
    def label(self) -> str:
        """`1024x1024 b1` or `mixed auto`."""
        return f"{self.name} {'auto' if self.batch is None else f'b{self.batch}'}"

    def stretch(self, batch: int) -> int:
        """Images of a measured stretch where `batch` go at once: what lies between two batches is part of it."""
        least = max(self.images, len(self.sizes))
        return max(2, -(-least // batch)) * batch

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_json`, through JSON."""
        return cls(**{**values, "sizes": tuple((height, width) for height, width in values["sizes"])})


def make_case(name: str, batch: int | None, steps: int, images: int, largest: int) -> Case:
    """The case called `name`: a side in pixels, or `mixed`.

    Args:
        largest: side of the mixed dataset's largest samples, in pixels.
    """
    if name == "mixed":
        sizes = tuple((_part(largest, height), _part(largest, width)) for height, width in _MIXED)
    else:
        sizes = ((int(name), int(name)),)
        name = f"{name}x{name}"
    return Case(name=name, sizes=sizes, batch=batch, steps=steps, images=images)


def _part(largest: int, part: int) -> int:
    """1: all of it; 2: half; 3 and 4: a landscape or portrait of about the same area."""
    side = {1: 1.0, 2: 0.5, 3: 0.75, 4: 1.0}[part] * largest
    return max(16, round(side / 16) * 16)


class Samples:
    """Samples in memory, as a dataset of fluxexp."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    @classmethod
    def drawn(cls, sizes: Sequence[Size], number: int) -> Self:
        """`number` captioned scenes with holes, their sizes taken in turn."""
        sources = {size: _scenes(size, number) for size in dict.fromkeys(sizes)}
        return cls([sources[sizes[index % len(sizes)]](index) for index in range(number)])

    def __len__(self) -> int:
        return len(self.samples)

    def key(self, index: int) -> str:
        """Name of a sample."""
        return self.samples[index].key

    def identity(self, index: int) -> str:
        """Nothing but the key is needed: samples never change."""
        return ""

    def size(self, index: int) -> tuple[int, int] | None:
        """Height and width in pixels."""
        image = self.samples[index].image
        return (image.height, image.width) if image else None

    def load(self, index: int) -> Sample:
        """The sample, which is there already."""
        return self.samples[index]


def _scenes(size: Size, number: int) -> Any:
    height, width = size
    dataset = open_dataset(
        ShapesDatasetConfig(
            kind="shapes", length=number, height=height, width=width, seed=0, limit=None, placement="fit"
        )
    )

    def scene(index: int) -> Sample:
        sample = dataset.load(index)
        return Sample(key=f"{height}x{width}-{index:04d}", prompt=sample.prompt, image=sample.image, mask=sample.mask)

    return scene
