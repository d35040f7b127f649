"""Stores the features of images, one small file for each image, and the distances between sets of images."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluxexp.arrays import FeatureArray
from fluxexp.errors import StorageError
from fluxexp.storage.json_shapes import ByName, Fields, count, number, parse_object
from fluxexp.storage.result_files import SET_SCORES, features_key
from fluxexp.storage.run_store import RunStore

_SET_SCORES = Fields(
    {
        "metrics": ByName(number),
        "intervals": ByName(Fields({"low": number, "high": number}, ("low", "high"))),
        "num": count,
    },
    ("metrics", "num"),
)


@dataclass(frozen=True, slots=True)
class SetScore:
    """A distance between two sets of images, with its 95 % interval."""

    value: float
    low: float | None
    """None if an older fluxexp computed the distance."""
    high: float | None


@dataclass(frozen=True, slots=True)
class FeatureStore:
    """Features by one extractor, of the images of one run and of their ground truths."""

    store: RunStore
    extractor: str
    """Name of the extractor as a part of a file name."""

    def __contains__(self, key: str) -> bool:
        return self.store.exists(self._key(key))

    def write(self, key: str, made: FeatureArray, real: FeatureArray | None) -> None:
        """Keep the features of the image `key` and of its ground truth, both of shape (D,).

        Raises:
            StorageError: they cannot be written.
        """
        buffer = io.BytesIO()
        if real is None:
            np.savez(buffer, made=made)
        else:
            np.savez(buffer, made=made, real=real)
        try:
            self.store.put(self._key(key), buffer.getvalue(), durable=False)  # lost features are computed again
        except OSError as error:
            raise StorageError(f"features of {self.store.address} cannot be written: {error}") from error

    def read(self, keys: Iterable[str]) -> tuple[FeatureArray, FeatureArray]:
        """Features of the images `keys`. Images without features are left out.

        Returns:
            arrays (N, D) of the images and (M, D) of their ground truths; (0, 0) if there are none.

        Raises:
            StorageError: files are damaged. They are removed, so that the next scoring computes them again.
        """
        made: list[FeatureArray] = []
        real: list[FeatureArray] = []
        num_damaged = 0
        for key in keys:
            if (content := self.store.get(self._key(key))) is None:
                continue
            try:
                with np.load(io.BytesIO(content)) as arrays:
                    parts = _vector(arrays["made"]), [_vector(arrays["real"])] if "real" in arrays else []
            except Exception:  # on damaged files, the library raises errors of many types
                self.store.delete(self._key(key))
                num_damaged += 1
                continue
            made.append(parts[0])
            real += parts[1]
        if num_damaged:
            raise StorageError(f"features of {num_damaged} images in {self.store.address} were damaged: score again")
        return _stacked(made), _stacked(real)

    def _key(self, key: str) -> str:
        return features_key(self.extractor, key)


def write_set_scores(store: RunStore, scores: Mapping[str, SetScore], num: int) -> None:
    """Write distances between sets of `num` images to the other scores of a run."""
    content: dict[str, Any] = {
        "metrics": {name: score.value for name, score in scores.items()},
        "intervals": {name: {"low": score.low, "high": score.high} for name, score in scores.items()},
        "num": num,
    }
    store.put(SET_SCORES, f"{json.dumps(content, indent=2)}\n".encode())


def read_set_scores(store: RunStore) -> tuple[dict[str, SetScore], int]:
    """Distances between sets, and the number of images in them; an empty dict and 0 if there are none.

    Raises:
        StorageError: the file is damaged.
    """
    content = store.get(SET_SCORES)
    if content is None:
        return {}, 0
    try:
        values = parse_object(content)
        if (fault := _SET_SCORES(values, "")) is not None:
            raise ValueError(fault)
    except ValueError as error:
        raise StorageError(f"{store.address}/{SET_SCORES} is damaged ({error}), so it is computed again") from error
    ends = {name: values.get("intervals", {}).get(name, {}) for name in values["metrics"]}
    scores = {
        name: SetScore(value, ends[name].get("low"), ends[name].get("high"))
        for name, value in values["metrics"].items()
    }
    return scores, values["num"]


def _vector(array: FeatureArray) -> FeatureArray:
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError("it is not a vector of finite numbers")
    return array


def _stacked(rows: list[FeatureArray]) -> FeatureArray:
    return np.stack(rows) if rows else np.zeros((0, 0), np.float32)
