"""The data of a run for a replay. The run can be incomplete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fluxexp.config.migrations import read_part
from fluxexp.config.schema import TrackingConfig
from fluxexp.errors import StorageError
from fluxexp.records import Record
from fluxexp.storage.result_files import CONFIG
from fluxexp.storage.run_directory import RunDirectory
from fluxexp.terminal import say
from fluxexp.tracking import summary_values


@dataclass(frozen=True, slots=True, kw_only=True)
class _OnlyTracking:
    """The only part of the config that is read here. Other parts may come from another version of fluxexp."""

    tracking: TrackingConfig


@dataclass(frozen=True, slots=True)
class Source:
    """A run, with its config as plain values, so that runs of other versions of fluxexp can be replayed."""

    directory: RunDirectory
    config: Mapping[str, Any]
    fingerprint: str

    @classmethod
    def read(cls, directory: RunDirectory) -> Source:
        """Read the run in `directory`.

        Raises:
            StorageError: `directory` is not the directory of a run, or its config or fingerprint is damaged.
        """
        config, fingerprint = directory.reader.config_values(), directory.reader.fingerprint()
        if not isinstance(config.get("name"), str):
            raise StorageError(f"{directory.address} is not the directory of a run: {CONFIG} has no `name`")
        return cls(directory, config, fingerprint)

    @property
    def name(self) -> str:
        """Name of the run in its config."""
        return str(self.config["name"])

    def tracking(self) -> TrackingConfig:
        """The run's tracking config. Raises a ConfigError if this version of fluxexp cannot use it."""
        return read_part(_OnlyTracking, {"tracking": self.config.get("tracking") or {}})[0].tracking

    def summary(self, outcomes: Mapping[str, Record]) -> dict[str, Any]:
        """The summary that a live run sends to W&B at its end. Without a sound file it is built from `outcomes`."""
        reader = self.directory.reader.lenient()
        summary = reader.summary()
        for note in reader.notes:
            say(f"fluxexp: {self.directory.address}: {note}", urgent=True)
        if summary is not None and "status" in summary:
            return summary_values(summary)
        return {
            "status": "incomplete",
            "name": self.name,
            "fingerprint": self.fingerprint,
            "num_ok": sum(record.status == "ok" for record in outcomes.values()),
            "num_failed": sum(record.status == "failed" for record in outcomes.values()),
        }
