"""`python -m fluxexp.submit [OPTIONS] -- OVERRIDES`: run a command of fluxexp on a cluster (docs/nodes.md)."""

from __future__ import annotations

import sys

from fluxexp.cli.exit import die
from fluxexp.errors import FluxexpError
from fluxexp.submit.checked_job import checked_job
from fluxexp.submit.kubernetes_manifest import manifest
from fluxexp.submit.slurm_queue import enqueue
from fluxexp.submit.slurm_script import batch_script, finishing_script
from fluxexp.submit.submit_arguments import ClusterJob, parse_job


def main(arguments: list[str] | None = None) -> None:
    """Submit the command, or show what would be submitted. Exit code 2 if it cannot be run, 1 if Slurm refuses it."""
    try:
        job = checked_job(parse_job(arguments))
        if job.target == "kubernetes":
            print(manifest(job), end="")
        elif job.dry_run:
            print("\n".join(_scripts(job)), end="")
        else:
            print("\n".join(enqueue(job)))
    except FluxexpError as error:
        die(error, alone=True)


def _scripts(job: ClusterJob) -> list[str]:
    return [batch_script(job), *([finishing_script(job, "ARRAY_JOB")] if job.array else [])]


if __name__ == "__main__":
    main()
    sys.exit(0)
