"""Draws the images of the cases, and runs fluxexp on them in this process."""

from __future__ import annotations

import struct
import zlib
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

INPUTS = Path(__file__).parent / "inputs"
"""Files that other programs wrote, or that Pillow cannot write."""
WIDTH, HEIGHT = 96, 64
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


def voc_palette() -> list[int]:
    """The colors of PASCAL VOC: class 0 is black, class 1 is (128, 0, 0), and so on."""
    colors = []
    for number in range(256):
        channels = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                channels[channel] |= (number >> (3 * bit + channel) & 1) << (7 - bit)
        colors += channels
    return colors


def pair(folder: Path, name: str = "cat", image: Image.Image | None = None) -> None:
    """An image with a mask in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    image = image or scene()
    image.save(folder / f"{name}.png", icc_profile=image.info.get("icc_profile"))
    mask(*image.size).save(folder / f"{name}_mask.png")


def deep_png(width: int = WIDTH, height: int = HEIGHT) -> bytes:
    """A PNG file with 16 bits for each of red, green and blue, which Pillow cannot write."""
    values = np.random.default_rng(0).integers(0, 65536, (height, width * 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


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
