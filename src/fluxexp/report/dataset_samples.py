"""Loads the samples of a run by key, if its dataset still exists. A sample is read when a page needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fluxexp.config import schema
from fluxexp.config.migrations import read_part
from fluxexp.data import Dataset, open_dataset
from fluxexp.errors import ConfigError, FluxexpError
from fluxexp.records import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class _OnlyDataset:
    """The part of the config that this module needs. Other parts may come from another version of fluxexp."""

    dataset: schema.DatasetConfig


class Samples:
    """The samples of one dataset by key.

    A dataset that cannot be opened is not an error. `problem` then says why, and `load` returns that reason.

    Args:
        config: the config of a run, with the dataset under `dataset`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.problem: str | None = None
        """Why the dataset cannot be opened; None if it is open."""
        self.thumbnails: dict[tuple[str, int], dict[str, Any]] = {}
        """Cache of thumbnails by sample key and size, for the other pages of the same sweep."""
        self._dataset: Dataset | None = None
        try:
            self._dataset = open_dataset(read_part(_OnlyDataset, {"dataset": config.get("dataset")})[0].dataset)
        except ConfigError as error:
            self.problem = "; ".join(f"{problem.key}: {problem.reason}" for problem in error.problems)
        except (FluxexpError, OSError, ValueError) as error:
            self.problem = str(error)

    @cached_property
    def order(self) -> Mapping[str, int]:
        """The index of each sample in the dataset, by key."""
        dataset = self._dataset
        return {} if dataset is None else {dataset.key(index): index for index in range(len(dataset))}

    def load(self, key: str) -> Sample | str:
        """The sample, or the reason why it cannot be read."""
        index = self.order.get(key)
        if self._dataset is None or index is None:
            return self.problem or "the dataset no longer contains this sample"
        try:
            return self._dataset.load(index)
        except (FluxexpError, OSError, ValueError) as error:
            return str(error)
