"""The common part of a run's and a sweep's directory: its address, its name and its store."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fluxexp.address import Address
from fluxexp.storage.open_store import open_store
from fluxexp.storage.run_store import RunStore


@dataclass(frozen=True)
class ResultDirectory:
    """Where one run or sweep is. Two are equal if their addresses are."""

    address: Address

    @property
    def name(self) -> str:
        """Name of the run or sweep, without the folder that it is in."""
        return self.address.name

    @cached_property
    def store(self) -> RunStore:
        """Keeps the files. Raises StorageError if there is no store for the address."""
        return open_store(self.address)

    @property
    def is_local(self) -> bool:
        """Whether the files are in a directory of this machine."""
        return self.address.is_local

    def local_directory(self) -> Path:
        """For the files of W&B, which need a real directory. All other code uses the store.

        Raises:
            StorageError: the files are not in a local directory.
        """
        return self.address.local_path()
