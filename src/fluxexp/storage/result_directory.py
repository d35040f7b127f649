"""The common part of a run's and a sweep's directory: its address, its name and its store."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fluxexp.address import Address
from fluxexp.storage.open_store import open_store
from fluxexp.storage.patience import READING_S
from fluxexp.storage.retrying_store import RetryingStore
from fluxexp.storage.run_store import RunStore
from fluxexp.storage.sharded_store import ShardedStore

WANDB_ROOT = Path("wandb")
"""Where the files of W&B are, relative to the working directory, for results that are not in a local directory."""


@dataclass(frozen=True)
class ResultDirectory:
    """Where one run or sweep is. Two are equal if their addresses are."""

    address: Address
    retry_s: float = field(default=READING_S, compare=False)
    """How long writes are repeated while the store has a passing trouble, in seconds. A session sets it to
    `output.retry_s`; a command that only reads results waits for a few seconds."""

    @property
    def name(self) -> str:
        """Name of the run or sweep, without the folder that it is in."""
        return self.address.name

    @cached_property
    def store(self) -> ShardedStore:
        """Keeps the files, and waits while they cannot be written. StorageError if no store fits the address."""
        return ShardedStore(RetryingStore(self.store_without_retries, self.retry_s))

    @cached_property
    def store_without_retries(self) -> RunStore:
        """The same files for telemetry, which never waits. StorageError if there is no store for the address."""
        return open_store(self.address)

    @property
    def is_local(self) -> bool:
        """Whether the files are in a directory of this machine."""
        return self.address.is_local

    def tracking_directory(self) -> Path:
        """Where W&B keeps its files: the results' own directory, or for another store a directory on this machine."""
        return self.local_directory() if self.is_local else WANDB_ROOT / self.name

    def local_directory(self) -> Path:
        """The results' directory on this machine, for tests. All other code uses the store.

        Raises:
            StorageError: the files are not in a local directory.
        """
        return self.address.local_path()
