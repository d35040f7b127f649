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
from fluxexp.storage.result_files import SET_SCORES, features_key
from fluxexp.storage.run_store import RunStore


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
        """
        made, real = [], []
        for key in keys:
            if (content := self.store.get(self._key(key))) is not None:
                with np.load(io.BytesIO(content)) as arrays:
                    made.append(arrays["made"])
                    real += [arrays["real"]] if "real" in arrays else []
        return _stacked(made), _stacked(real)

    def _key(self, key: str) -> str:
        return features_key(self.extractor, key)


def write_set_scores(store: RunStore, values: Mapping[str, float], num: int) -> None:
    """Write distances between sets of `num` images to the other scores of a run."""
    content: dict[str, Any] = {"metrics": dict(values), "num": num}
    store.put(SET_SCORES, f"{json.dumps(content, indent=2)}\n".encode())


def read_set_scores(store: RunStore) -> tuple[dict[str, float], int]:
    """Distances between sets, and the number of images in them; an empty dict and 0 if there are none.

    Raises:
        StorageError: the file is damaged.
    """
    content = store.get(SET_SCORES)
    if content is None:
        return {}, 0
    try:
        values = json.loads(content)
        return values["metrics"], values["num"]
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{store.address}: {SET_SCORES} is damaged ({error}); remove it and score again to restore it"
        ) from error


def _stacked(rows: list[FeatureArray]) -> FeatureArray:
    return np.stack(rows) if rows else np.zeros((0, 0), np.float32)
