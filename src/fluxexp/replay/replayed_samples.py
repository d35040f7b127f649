"""Rows of the sample table, from the manifest, the image files and, if it is still available, the dataset."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from PIL import Image, UnidentifiedImageError

from fluxexp.config import schema
from fluxexp.config.migrations import read_part
from fluxexp.data import Dataset, open_dataset
from fluxexp.errors import ConfigError, SampleError
from fluxexp.image_formats import RESULT_FORMATS
from fluxexp.records import Record, Sample, task_key
from fluxexp.replay.source import Source
from fluxexp.tracking import THUMBNAIL_PX, SampleRow
from fluxexp.transparency import over_white


@dataclass(frozen=True, slots=True)
class _Part:
    """The only part of the config that is read here. Other parts may come from another version of fluxexp."""

    dataset: schema.DatasetConfig


def sample_rows(source: Source, outcomes: Mapping[str, Record], limit: int) -> Iterator[SampleRow]:
    """Yield up to `limit` finished tasks, sorted by sample and image index.

    The order does not depend on ranks or time. The pictures of the sample are None if the dataset cannot be opened,
    or if the sample has changed since the run.
    """
    finished = (record for record in outcomes.values() if record.status == "ok" and record.file is not None)
    chosen = list(islice(sorted(finished, key=lambda record: (record.sample_key, record.variant)), limit))
    dataset = _dataset(source) if chosen else None
    places = _places(dataset, {record.sample_key for record in chosen}) if dataset else {}
    for record in chosen:
        place = places.get(record.sample_key)
        sample = _sample(source, dataset, place, record) if dataset and place is not None else None
        yield _row(source, record, sample)


def _dataset(source: Source) -> Dataset | None:
    try:
        return open_dataset(read_part(_Part, {"dataset": source.config.get("dataset")})[0].dataset)
    except (ConfigError, OSError):
        return None


def _places(dataset: Dataset, keys: set[str]) -> dict[str, int]:
    """Index in the dataset of each sample in `keys`."""
    found = ((key, index) for index in range(len(dataset)) if (key := dataset.key(index)) in keys)
    return dict(islice(found, len(keys)))


def _sample(source: Source, dataset: Dataset, index: int, record: Record) -> Sample | None:
    identity = dataset.identity(index)
    if task_key(source.fingerprint, record.sample_key, record.variant, identity) != record.key:
        return None  # the sample with this key has changed
    if record.inputs is not None and dataset.inputs(index) not in (None, record.inputs):
        return None  # its image or its mask has changed
    with suppress(SampleError):
        return dataset.load(index)
    return None


def _row(source: Source, record: Record, sample: Sample | None) -> SampleRow:
    assert record.file is not None
    return SampleRow(
        key=record.key,
        sample=record.sample_key,
        input=_small(sample.image) if sample else None,
        control=_small(sample.control_image) if sample else None,
        reference=_small(next(iter(sample.references), None)) if sample else None,
        mask=_small(sample.mask) if sample else None,
        result=_result(source, record.file),
        truth=_small(sample.truth) if sample else None,
        prompt=record.prompt,
        seed=record.seed,
    )


def _result(source: Source, key: str) -> Image.Image | None:
    content = source.directory.reader.image(key)
    if content is None:
        return None
    with suppress(UnidentifiedImageError, OSError), Image.open(io.BytesIO(content), formats=RESULT_FORMATS) as image:
        return _small(image)
    return None


def _small(image: Image.Image | None) -> Image.Image | None:
    """`image` at the size that is sent. Small, because all rows stay in memory until W&B accepts them."""
    if image is not None:
        image = over_white(image)
        image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    return image
