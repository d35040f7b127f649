"""Gives batch scripts to Slurm."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from fluxexp.errors import ConfigError, FluxexpError, Problem
from fluxexp.submit.slurm_script import batch_script, finishing_script
from fluxexp.submit.submit_arguments import ClusterJob


class SubmissionError(FluxexpError):
    """Slurm refuses a job."""


def enqueue(job: ClusterJob) -> list[str]:
    """Submit the job, and for a job array also the job that finishes the sweep. Returns lines for the terminal.

    Raises:
        ConfigError: Slurm is not installed here.
        SubmissionError: Slurm refuses the job, and says why.
    """
    if shutil.which("sbatch") is None:
        hint = "start it on a login node of the cluster; --dry-run prints the script"
        raise ConfigError(Problem("--to", "needs the command sbatch, which is not here", "slurm", hint))
    logs = Path(job.logs)
    logs.mkdir(parents=True, exist_ok=True)  # Slurm discards the output of a job without it
    number = _sbatch(batch_script(job))
    size = f"{job.nodes} node(s) with {job.ranks_per_node} process(es) each"
    if job.array is None:
        return [f"submitted  job {number}: {size}", f"output     {logs / f'{job.name}-{number}.out'}"]
    last = _sbatch(finishing_script(job, number))
    return [
        f"submitted  job array {number}: {job.array} elements, each {size}",
        f"           job {last}, which finishes the sweep after them (to cancel both: scancel {number} {last})",
        f"output     {logs / f'{job.name}-{number}_*.out'}",
    ]


def _sbatch(script: str) -> str:
    done = subprocess.run(["sbatch", "--parsable"], input=script, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SubmissionError(f"Slurm refuses the job: {done.stderr.strip()}")
    return done.stdout.strip().partition(";")[0]
