"""The samples of a run by key, if its dataset still exists. They are read when a page asks for them."""

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
    """The only part of the config that is built here: other parts may be of another version of fluxexp."""

    dataset: schema.DatasetConfig


class Samples:
    """Samples by key. No method raises: `why_not` says what is wrong with the whole dataset."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.why_not: str | None = None
        self.thumbnails: dict[tuple[str, int], dict[str, Any]] = {}
        """Thumbnails by key and size, kept for the next page of the same sweep."""
        self._dataset: Dataset | None = None
        try:
            self._dataset = open_dataset(read_part(_OnlyDataset, {"dataset": config.get("dataset")})[0].dataset)
        except ConfigError as error:
            self.why_not = "; ".join(f"{problem.key}: {problem.reason}" for problem in error.problems)
        except (FluxexpError, OSError, ValueError) as error:
            self.why_not = str(error)

    @cached_property
    def order(self) -> Mapping[str, int]:
        """The place of each sample in the dataset."""
        dataset = self._dataset
        return {} if dataset is None else {dataset.key(index): index for index in range(len(dataset))}

    def load(self, key: str) -> Sample | str:
        """The sample, or the reason why it cannot be read."""
        index = self.order.get(key)
        if self._dataset is None or index is None:
            return self.why_not or "the dataset has no such sample any more"
        try:
            return self._dataset.load(index)
        except (FluxexpError, OSError, ValueError) as error:
            return str(error)
