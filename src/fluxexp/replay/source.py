"""A run directory as what a replay needs of it. What a killed session has not written is done without."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fluxexp.config import build
from fluxexp.config.schema import TrackingConfig
from fluxexp.errors import StorageError
from fluxexp.records import Record, content_hash
from fluxexp.storage.run_directory import RunDirectory
from fluxexp.tracking import summary_values


@dataclass(frozen=True, slots=True)
class Source:
    """A run's directory with its config as plain values: one of another version of fluxexp can be replayed, too."""

    directory: RunDirectory
    config: Mapping[str, Any]
    fingerprint: str

    @classmethod
    def read(cls, path: Path) -> Source:
        """The run in directory `path`.

        Raises:
            StorageError: it is not the directory of a run.
        """
        directory = RunDirectory(path)
        try:
            config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
            payload = json.loads(directory.fingerprint.read_text(encoding="utf-8"))
        except OSError as error:
            raise StorageError(f"{path} is not the directory of a run: {error}") from error
        except (ValueError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise StorageError(f"{path}: config.yaml or fingerprint.json is damaged: {reason}") from error
        if not isinstance(config, dict) or not isinstance(config.get("name"), str):
            raise StorageError(f"{path} is not the directory of a run: config.yaml names none")
        return cls(directory, config, content_hash(payload))

    @property
    def name(self) -> str:
        """The config's name."""
        return str(self.config["name"])

    def tracking(self) -> TrackingConfig:
        """How the run was tracked, or was meant to be. ConfigError if this version does not understand it."""
        return build(TrackingConfig, self.config.get("tracking") or {})

    def summary(self, outcomes: Mapping[str, Record]) -> dict[str, Any]:
        """What a live run would tell W&B at its end; of a run that has no summary.json, what its manifest says.

        Raises:
            StorageError: summary.json is damaged.
        """
        summary = self.directory.read_summary()
        if summary is not None:
            return summary_values(summary)
        return {
            "status": "incomplete",
            "name": self.name,
            "fingerprint": self.fingerprint,
            "num_ok": sum(record.status == "ok" for record in outcomes.values()),
            "num_failed": sum(record.status == "failed" for record in outcomes.values()),
        }
