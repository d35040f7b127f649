"""W&B's environment variables, which count where the config says nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fluxexp.config.schema import TrackingConfig

DEFAULT_PROJECT = "fluxexp"


@dataclass(frozen=True, slots=True, kw_only=True)
class WandbSettings:
    """How W&B files a run. An empty variable counts as missing, as in W&B."""

    project: str
    """`tracking.project`, WANDB_PROJECT, or fluxexp."""
    group: str | None
    """`tracking.group`, WANDB_RUN_GROUP, or the group that the caller proposes."""
    tags: list[str]
    """`tracking.tags`, or WANDB_TAGS: a list with commas."""
    directory: Path
    """The parent of W&B's directory `wandb`: WANDB_DIR, or the directory of the run. Absolute."""

    @classmethod
    def of(
        cls, tracking: TrackingConfig, run_dir: Path, group: str | None, environ: Mapping[str, str] = os.environ
    ) -> WandbSettings:
        """The settings of a run in `run_dir`. `group` is the group without a config and without a variable."""
        tags = [tag.strip() for tag in environ.get("WANDB_TAGS", "").split(",")]
        return cls(
            project=tracking.project or environ.get("WANDB_PROJECT") or DEFAULT_PROJECT,
            group=tracking.group or environ.get("WANDB_RUN_GROUP") or group,
            tags=tracking.tags or [tag for tag in tags if tag],
            directory=Path(environ.get("WANDB_DIR") or run_dir).expanduser().absolute(),
        )
