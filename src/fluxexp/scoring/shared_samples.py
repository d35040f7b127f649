"""What the results of one sample share while they are scored, so that it is read and computed once."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import Image

from fluxexp.arrays import ImageArray
from fluxexp.config import RunConfig
from fluxexp.image_formats import RESULT_FORMATS
from fluxexp.metrics.case import ScoredSample
from fluxexp.metrics.memo import Memo
from fluxexp.passing_trouble import read_patiently
from fluxexp.plan import Plan
from fluxexp.storage.result_files import image_key
from fluxexp.transparency import over_white

T = TypeVar("T")

CAPACITY = 2
"""Samples that are kept. Images are scored sample by sample, so that at most two samples are in work at most times."""


class SharedSample:
    """One sample of a dataset, and the reference's results for it. Thread-safe. Errors are kept like values."""

    def __init__(self, plan: Plan, index: int) -> None:
        self._dataset = plan.dataset
        self._index = index
        self._memo = Memo()
        self.content = plan.scored_content(index)
        """See `Plan.scored_content`. It is taken before the files are read: a change in between is scored again."""

    def scored(self, config: RunConfig) -> ScoredSample | Exception:
        """The sample as results of a run with this config are compared with it."""
        return self._memo.once(("sample", ScoredSample.key(config)), lambda: try_to(lambda: self._scored(config)))

    def _scored(self, config: RunConfig) -> ScoredSample:
        sample = self._memo.once(
            "files", lambda: try_to(lambda: read_patiently(lambda: self._dataset.load(self._index)))
        )
        if isinstance(sample, Exception):
            raise sample
        return ScoredSample.of(sample, config)

    def reference(self, plan: Plan, key: str) -> ImageArray | Exception | None:
        """The pixels of the reference's result; None if there is none."""

        def read() -> ImageArray | Exception | None:
            if not plan.directory.reader.has_image(image_key(key, plan.config.output.format)):
                return None
            return try_to(lambda: read_pixels(plan, key))

        return self._memo.once(("reference", plan.directory.address, key), read)


class SharedSamples:
    """The samples that were used last. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samples: OrderedDict[tuple[int, int], SharedSample] = OrderedDict()

    def of(self, plan: Plan, index: int) -> SharedSample:
        """Sample `index` of the run's dataset. Runs with the same dataset object share their samples."""
        key = id(plan.dataset), index
        with self._lock:
            if (known := self._samples.get(key)) is not None:
                self._samples.move_to_end(key)
                return known
            made = self._samples[key] = SharedSample(plan, index)
            while len(self._samples) > CAPACITY:
                self._samples.popitem(last=False)
            return made


def read_result(plan: Plan, key: str) -> Image.Image:
    """The image that the run wrote for task `key`."""
    data = plan.directory.reader.read_image(image_key(key, plan.config.output.format))
    return Image.open(io.BytesIO(data), formats=RESULT_FORMATS)


def read_pixels(plan: Plan, key: str) -> ImageArray:
    """RGB pixels of a result, uint8, of shape (height, width, 3)."""
    with read_result(plan, key) as image:
        return np.asarray(over_white(image))


def try_to(function: Callable[[], T]) -> T | Exception:
    """Result of `function`, or its error. An error affects one image, and scoring continues with the others."""
    try:
        return function()
    except Exception as error:
        return error.with_traceback(None)
