"""Hydra finds its plugins in this namespace package: the launcher that hands all jobs of a multirun to fluxexp at once.

Any program that uses Hydra imports this module, so it imports nothing large.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

NAME = "fluxexp"


class PoolLauncher(Launcher):
    """Composes all jobs, and has them run as one pool of tasks by the task function's `run_all`."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what `launch` needs."""
        self._context = hydra_context
        self._task_function: Any = task_function
        self._config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs. A job's return value is what a sweeper that searches goes by; one that failed has None."""
        loader = self._context.config_loader
        jobs = [
            (list(overrides), lambda overrides=overrides: loader.load_sweep_config(self._config, list(overrides)))
            for overrides in job_overrides
        ]
        values = self._task_function.run_all(jobs)
        returns = []
        for overrides, value in zip(job_overrides, values, strict=True):
            done = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
            done.return_value = value
            returns.append(done)
        return returns


ConfigStore.instance().store(
    group="hydra/launcher", name=NAME, node={"_target_": f"{__name__}.{PoolLauncher.__name__}"}, provider=NAME
)
