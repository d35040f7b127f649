"""Draws the images of the cases, and runs fluxexp on them in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from fluxexp.address import Address
from fluxexp.config import RunConfig
from fluxexp.experiment import run_experiment
from fluxexp.records import Record
from fluxexp.storage.run_directory import RunDirectory

WIDTH, HEIGHT = 96, 64
MASKED = (53, 6, 76, 32)
"""Left, top, right and bottom of the masked region of `mask`, all included."""
FAKE = ("model=fake", "dataset.prompt=a red circle", "metrics=none", "report=off", "tracking=disabled")


def scene(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A gradient with a red circle and a blue box."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([60 + 150 * x / width, 80 + 120 * y / height, 160 - 90 * x / width], -1)
    image = Image.fromarray(pixels.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse((width * 0.1, height * 0.1, width * 0.35, height * 0.5), fill=(220, 60, 40))
    draw.rectangle((width * 0.6, height * 0.55, width * 0.9, height * 0.9), fill=(30, 90, 200))
    return image


def mask(width: int = WIDTH, height: int = HEIGHT, value: int = 255) -> Image.Image:
    """A mask (mode L) with `value` in a box."""
    image = Image.new("L", (width, height), 0)
    ImageDraw.Draw(image).rectangle((width * 0.55, height * 0.1, width * 0.8, height * 0.5), fill=value)
    return image


def masked(width: int = WIDTH, height: int = HEIGHT) -> Any:
    """The masked pixels of `mask`, as a bool array."""
    return np.asarray(mask(width, height)) > 0


@dataclass(frozen=True)
class Ran:
    """A run that ended in this process."""

    directory: RunDirectory
    summary: dict[str, Any]

    @property
    def records(self) -> dict[str, Record]:
        """By sample key."""
        self.directory.reader.refresh_records()
        return {record.sample_key: record for record in self.directory.reader.outcomes().values()}

    def file(self, sample: str) -> Path:
        """The image of a sample."""
        record = self.records[sample]
        assert record.file is not None, record.error
        return self.directory.address.local_path() / record.file

    def image(self, sample: str) -> Image.Image:
        with Image.open(self.file(sample)) as image:
            image.load()
            return image


def run(compose: Callable[..., RunConfig], root: Path, folder: Path, *overrides: str) -> Ran:
    """Run the fake model on a folder of images. The results are below `root`."""
    config = compose(*FAKE, "dataset=folder", f"dataset.path={folder}", *overrides)
    outcome = run_experiment(config, Address.of(root), [])
    directory = RunDirectory(outcome.address)
    return Ran(directory, directory.reader.summary() or {})
