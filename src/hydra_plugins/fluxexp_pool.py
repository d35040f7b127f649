"""Hydra launcher that passes all jobs of a multirun to fluxexp at once. Hydra finds plugins in this namespace package.

Every program that uses Hydra imports this module, so it must not import large libraries.
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
    """Composes all jobs and runs them as one pool of tasks, through `run_all` of the task function."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store the context, the task function and the config for `launch`."""
        self._context = hydra_context
        self._task_function: Any = task_function
        self._config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs. The return value of a job is the objective of a search, None for a failed job."""

        def compose(overrides: Sequence[str]) -> Any:
            return self._context.config_loader.load_sweep_config(self._config, list(overrides))

        values = self._task_function.run_all([list(overrides) for overrides in job_overrides], compose)
        returns = []
        for overrides, value in zip(job_overrides, values, strict=True):
            done = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
            done.return_value = value
            returns.append(done)
        return returns


ConfigStore.instance().store(
    group="hydra/launcher", name=NAME, node={"_target_": f"{__name__}.{PoolLauncher.__name__}"}, provider=NAME
)
