"""Creates images, files and datasets for the tests in this folder."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fluxexp.config.schema import FolderDatasetConfig, PromptsDatasetConfig, TableDatasetConfig
from fluxexp.data import Dataset, open_dataset
from fluxexp.errors import ConfigError, SampleError
from fluxexp.records import Sample


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """An image of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def spot(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    """A mask (mode L) with 255 in `box`."""
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, box)
    return mask


def write(path: Path, picture: Image.Image | None = None, **options: Any) -> Path:
    """Save `picture` (by default random pixels) at `path`, and create its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (noise(24, 16) if picture is None else picture).save(path, **options)
    return path


def array(image: Image.Image | None) -> NDArray[np.uint8]:
    assert image is not None
    return np.asarray(image)


PICTURES: Mapping[str, Any] = {
    "alpha_mask": False,
    "mask": None,
    "limit": None,
    "invert_mask": False,
    "mask_blur": 0.0,
    "mask_padding": None,
    "max_image_megapixels": 100.0,
    "allowed_folders": [],
    "images_are": "inputs",
    "controls": None,
    "references": None,
}
"""Values of conf/ for the keys that all datasets of pictures have."""


def folder(path: Path, **keys: Any) -> Dataset:
    """dataset=folder with the defaults of conf/, and with a prompt."""
    keys = {
        "masks": None,
        "truths": None,
        "prompt": "p",
        **PICTURES,
    } | keys
    return open_dataset(FolderDatasetConfig(kind="folder", path=str(path), placement="fit", **keys))


def table(path: Path, **keys: Any) -> Dataset:
    """dataset=table with the defaults of conf/."""
    keys = {
        "prompt": None,
        **PICTURES,
    } | keys
    return open_dataset(TableDatasetConfig(kind="table", path=str(path), placement="fit", **keys))


def prompts(path: Path, limit: int | None = None) -> Dataset:
    """dataset=prompts."""
    return open_dataset(PromptsDatasetConfig(kind="prompts", path=str(path), limit=limit))


def keys_of(dataset: Dataset) -> list[str]:
    return [dataset.key(index) for index in range(len(dataset))]


def config_error(dataset: Any, path: Path, **keys: Any) -> str:
    """Message of the ConfigError that is raised for `path`."""
    with pytest.raises(ConfigError) as caught:
        dataset(path, **keys)
    return str(caught.value)


def sample_error(dataset: Dataset, index: int) -> str:
    """Message of the SampleError that is raised for a sample."""
    with pytest.raises(SampleError) as caught:
        dataset.load(index)
    return str(caught.value)


def content(sample: Sample) -> tuple[object, ...]:
    """The content of a sample as a comparable value."""
    pictures = (sample.image, sample.mask, sample.truth)
    return (
        sample.key,
        sample.prompt,
        sample.size,
        dict(sample.traits),
        *((p.mode, p.size, p.tobytes()) if p is not None else None for p in pictures),
    )


def assert_threads_agree(dataset: Dataset) -> None:
    """Eight threads together load the same samples as one thread."""
    indices = list(range(len(dataset))) * 4
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda index: content(dataset.load(index)), indices))
    alone = [content(dataset.load(index)) for index in range(len(dataset))]
    assert together == alone * 4


def assert_checks_index(dataset: Dataset) -> None:
    for index in (-1, len(dataset)):
        with pytest.raises(IndexError):
            dataset.key(index)
        with pytest.raises(IndexError):
            dataset.load(index)
