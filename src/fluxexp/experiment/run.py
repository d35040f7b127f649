"""The table of contents of a run. Checks what can be checked without torch, then imports it and works."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fluxexp.config import RunConfig
from fluxexp.data import open_dataset
from fluxexp.experiment.plan import Plan


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended, on rank 0; the other ranks know only that they did their part."""

    directory: Path
    num_failed: int = 0
    complete: bool = True


def run_experiment(config: RunConfig, root: Path, overrides: Sequence[str]) -> Outcome:
    """Run `config`, or continue it where an earlier session stopped.

    Args:
        config: what to run; under a launcher rank 0's counts.
        root: holds the run's directory, unless `output.dir` says otherwise.
        overrides: what the user typed, kept beside the results.

    Raises:
        ConfigError: the dataset cannot be opened, or a device is not there.
        StorageError: the directory is another config's, or cannot be written.
        RankError: ranks disagree, or one of them failed.
    """

    def make_plan(of: RunConfig) -> Plan:
        return Plan.of(of, open_dataset(of.dataset), root)

    is_main = (os.environ.get("RANK") or "0") == "0"
    plan = make_plan(config) if is_main else None
    if config.debug.plan:
        if plan is not None:
            print_plan(plan)
        return Outcome(plan.directory.path if plan else root)

    # Only now: importing torch takes seconds, and a typo in the config should not.
    from fluxexp.experiment.session import Session

    return Session.begin(config, plan, make_plan, overrides).run()


def print_plan(plan: Plan) -> None:
    """Say what would be done (`debug=plan`)."""
    config = plan.config
    pending = plan.pending(plan.directory.outcomes())
    sampling = config.sampling
    lines = [
        f"model      {config.model.name} ({config.model.family})",
        f"scheduler  {config.scheduler.name}, {sampling.steps} steps, guidance {sampling.guidance:g}",
        f"dataset    {config.dataset.kind}, {len(plan.dataset)} samples x {sampling.images_per_sample}",
        f"tasks      {plan.num_tasks}, of which {plan.num_tasks - len(pending)} are done",
        f"processes  {os.environ.get('WORLD_SIZE') or 1}",
        f"directory  {plan.directory.path}",
    ]
    print("\n".join(lines), file=sys.stdout)
