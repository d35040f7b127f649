"""The cases of the benchmark: sizes, batch sizes, steps and samples. It does not depend on engines.

The samples are generated before any measurement and stay in memory, so that reading files does not count. All engines
get the same samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from fluxexp.config.schema import ShapesDatasetConfig
from fluxexp.data import open_dataset
from fluxexp.data.dataset import SamplingColumns
from fluxexp.records import Sample
from imagespeed.models import MODELS, BenchmarkModel

Size = tuple[int, int]
"""Height and width in pixels."""

_MIXED = ((1, 1), (3, 4), (1, 2), (4, 3), (1, 1), (1, 2))
"""Heights and widths of the mixed dataset's samples, as codes of `_side`."""
_FILL = MODELS["flux_fill"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One case of the benchmark."""

    name: str
    sizes: tuple[Size, ...]
    """Sizes of the samples, repeated in this order."""
    batch: int | None
    """Batch size. None: fluxexp chooses it, also for the other engines."""
    steps: int
    images: int
    """Minimum number of images of a stretch. A stretch has at least two whole batches."""
    model_name: str = _FILL.name
    has_second_pass: bool = False
    """Whether each step evaluates the transformer twice (true CFG)."""

    @property
    def model(self) -> BenchmarkModel:
        """The model that makes the images."""
        return MODELS[self.model_name]

    @property
    def steps_run(self) -> int:
        """Number of steps that are run: fewer than `steps` if the model starts from an image, as in diffusers."""
        return self.steps - int(self.steps - min(self.steps * self.model.strength, self.steps))

    @property
    def passes(self) -> int:
        """Number of evaluations of the transformer per step and image."""
        return 2 if self.has_second_pass else 1

    @property
    def is_mixed(self) -> bool:
        """Whether samples differ in size."""
        return len(self.sizes) > 1

    @property
    def label(self) -> str:
        """Name and batch size, for example `1024x1024 b1` or `mixed auto`."""
        return f"{self.name} {'auto' if self.batch is None else f'b{self.batch}'}"

    def stretch(self, batch: int) -> int:
        """Number of images of a stretch with batch size `batch`. It includes the time between at least two batches."""
        least = max(self.images, len(self.sizes))
        return max(2, -(-least // batch)) * batch

    def to_json(self) -> dict[str, Any]:
        """The case as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_json`, also after a round trip through JSON."""
        return cls(**{**values, "sizes": tuple((height, width) for height, width in values["sizes"])})


def make_case(
    name: str,
    batch: int | None,
    steps: int,
    images: int,
    largest: int,
    model_name: str = _FILL.name,
    has_second_pass: bool = False,
) -> Case:
    """The case called `name`.

    Args:
        name: side of square images in pixels, or `mixed`.
        batch: batch size; None lets fluxexp choose it.
        steps: denoising steps.
        images: minimum number of images of a stretch.
        largest: side of the mixed dataset's largest samples, in pixels.
        model_name: a key of `MODELS`.
        has_second_pass: whether images are made with a negative prompt.
    """
    if name == "mixed":
        sizes = tuple((_side(largest, height), _side(largest, width)) for height, width in _MIXED)
    else:
        sizes = ((int(name), int(name)),)
        name = f"{name}x{name}"
    return Case(
        name=name,
        sizes=sizes,
        batch=batch,
        steps=steps,
        images=images,
        model_name=model_name,
        has_second_pass=has_second_pass,
    )


def _side(largest: int, code: int) -> int:
    """A side in pixels, a multiple of 16. Codes 1 and 4 are the largest side, 2 is half of it, 3 three quarters."""
    side = {1: 1.0, 2: 0.5, 3: 0.75, 4: 1.0}[code] * largest
    return max(16, round(side / 16) * 16)


class Samples:
    """Samples in memory, with the interface of a fluxexp dataset."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        self.notes: list[str] = []

    @classmethod
    def generated(cls, sizes: Sequence[Size], number: int, model: BenchmarkModel = _FILL) -> Self:
        """Generate `number` captioned scenes with the pictures that `model` needs. They take their sizes in turn."""
        sources = {size: _scenes(size, number, model) for size in dict.fromkeys(sizes)}
        return cls([sources[sizes[index % len(sizes)]](index) for index in range(number)])

    def __len__(self) -> int:
        return len(self.samples)

    def key(self, index: int) -> str:
        """Key of a sample."""
        return self.samples[index].key

    def identity(self, index: int) -> str:
        """Empty: the key identifies a sample, because samples never change."""
        return ""

    def inputs(self, index: int) -> None:
        """None: the samples are not files."""

    def known_inputs(self, index: int) -> None:
        """None."""

    def truth(self, index: int) -> None:
        """None: the samples are not files."""

    def guidance(self, index: int) -> None:
        """None: samples have no settings."""

    def true_cfg_scale(self, index: int) -> None:
        """None, for the same reason."""

    sampling_columns = SamplingColumns()

    has_loras = False

    def lora(self, index: int) -> None:
        """None: samples have no LoRAs."""

    def size(self, index: int) -> tuple[int, int] | None:
        """Height and width in pixels."""
        return self.samples[index].size

    def load(self, index: int) -> Sample:
        """The sample, which is already in memory."""
        return self.samples[index]


def _scenes(size: Size, number: int, model: BenchmarkModel) -> Any:
    height, width = size
    dataset = open_dataset(
        ShapesDatasetConfig(
            kind="shapes",
            length=number,
            height=height,
            width=width,
            seed=0,
            limit=None,
            placement="fit",
            controls="outlines" if "control_image" in model.family.required else None,
            references="scenes" if "references" in model.family.required else None,
            style=None,
        )
    )

    def scene(index: int) -> Sample:
        sample = dataset.load(index)
        return Sample(
            key=f"{height}x{width}-{index:04d}",
            prompt=sample.prompt,
            size=size,
            **model.pictures(sample),
        )

    return scene
