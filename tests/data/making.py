"""Makes what the tests of this folder read: pictures, files and configs."""

from __future__ import annotations

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
    """A picture in which every pixel counts."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def spot(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    """A mask (L) that is 255 in `box`."""
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, box)
    return mask


def write(path: Path, picture: Image.Image | None = None, **options: Any) -> Path:
    """Save `picture` (some noise) at `path`, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (noise(24, 16) if picture is None else picture).save(path, **options)
    return path


def array(image: Image.Image | None) -> NDArray[np.uint8]:
    assert image is not None
    return np.asarray(image)


def folder(path: Path, **keys: Any) -> Dataset:
    """dataset=folder, as conf/ has it but with a prompt."""
    keys = {"masks": None, "truths": None, "prompt": "p", "alpha_mask": False, "mask": None, "limit": None} | keys
    return open_dataset(FolderDatasetConfig(kind="folder", path=str(path), placement="fit", **keys))


def table(path: Path, **keys: Any) -> Dataset:
    """dataset=table, as conf/ has it."""
    keys = {"prompt": None, "alpha_mask": False, "mask": None, "limit": None} | keys
    return open_dataset(TableDatasetConfig(kind="table", path=str(path), placement="fit", **keys))


def prompts(path: Path, limit: int | None = None) -> Dataset:
    """dataset=prompts."""
    return open_dataset(PromptsDatasetConfig(kind="prompts", path=str(path), limit=limit))


def keys_of(dataset: Dataset) -> list[str]:
    return [dataset.key(index) for index in range(len(dataset))]


def refusal(dataset: Any, path: Path, **keys: Any) -> str:
    """What the ConfigError says that opening `path` raises."""
    with pytest.raises(ConfigError) as caught:
        dataset(path, **keys)
    return str(caught.value)


def failure(dataset: Dataset, index: int) -> str:
    """What the SampleError says that loading a sample raises."""
    with pytest.raises(SampleError) as caught:
        dataset.load(index)
    return str(caught.value)


def content(sample: Sample) -> tuple[object, ...]:
    """All of a sample, comparable."""
    pictures = (sample.image, sample.mask, sample.truth)
    return (
        sample.key,
        sample.prompt,
        sample.size,
        dict(sample.traits),
        *((p.mode, p.size, p.tobytes()) if p is not None else None for p in pictures),
    )


def assert_threads_agree(dataset: Dataset) -> None:
    """Every sample, loaded by eight threads in turns, is what one thread loads."""
    indices = list(range(len(dataset))) * 4
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda index: content(dataset.load(index)), indices))
    alone = [content(dataset.load(index)) for index in range(len(dataset))]
    assert together == alone * 4


def assert_knows_its_end(dataset: Dataset) -> None:
    for index in (-1, len(dataset)):
        with pytest.raises(IndexError):
            dataset.key(index)
        with pytest.raises(IndexError):
            dataset.load(index)
