"""Features of pictures for distances between sets, a small file for each image; and those distances."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fluxexp.errors import StorageError
from fluxexp.storage.atomic import TEMPORARY_PREFIX, write_atomically

FeatureArray = NDArray[np.float32]

_SETS = "sets.json"


@dataclass(frozen=True, slots=True)
class FeatureStore:
    """Features of one kind, of one run's images and of their truths."""

    directory: Path

    def __contains__(self, key: str) -> bool:
        return self._file(key).is_file()

    def write(self, key: str, made: FeatureArray, real: FeatureArray | None) -> None:
        """Keep the features of the image `key` and of its truth.

        Raises:
            StorageError: they cannot be written.
        """
        buffer = io.BytesIO()
        if real is None:
            np.savez(buffer, made=made)
        else:
            np.savez(buffer, made=made, real=real)
        temporary = self.directory / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(buffer.getvalue())  # no fsync: what is lost when a machine goes is made again
            temporary.replace(self._file(key))
        except OSError as error:
            raise StorageError(f"{self.directory} cannot be written: {error}") from error

    def read(self, keys: Iterable[str]) -> tuple[FeatureArray, FeatureArray]:
        """(N, D) of the images among `keys` that are here, and (M, D) of their truths; (0, 0) where there are none."""
        made, real = [], []
        for key in keys:
            if key in self:
                with np.load(self._file(key)) as arrays:
                    made.append(arrays["made"])
                    real += [arrays["real"]] if "real" in arrays else []
        return _stacked(made), _stacked(real)

    def _file(self, key: str) -> Path:
        return self.directory / f"{key}.npz"


def write_set_scores(scores: Path, values: Mapping[str, float], num: int) -> None:
    """Leave distances between sets beside a run's other scores; `num` is how many images they are of."""
    content: dict[str, Any] = {"metrics": dict(values), "num": num}
    write_atomically(scores / _SETS, json.dumps(content, indent=2) + "\n")


def read_set_scores(scores: Path) -> tuple[dict[str, float], int]:
    """Distances between sets, and how many images they are of; nothing and 0 where there are none."""
    try:
        content = json.loads((scores / _SETS).read_text())
    except FileNotFoundError:
        return {}, 0
    except ValueError as error:
        raise StorageError(f"{scores / _SETS} is damaged ({error}); remove it, it is made again") from error
    return content["metrics"], content["num"]


def _stacked(rows: list[FeatureArray]) -> FeatureArray:
    return np.stack(rows) if rows else np.zeros((0, 0), np.float32)
