"""Batch scripts for Slurm. They start all ranks of a session with one `srun`, and queue an interrupted job again."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from fluxexp.cli.exit_codes import ExitCode
from fluxexp.cli.sweep_part import OPTION
from fluxexp.submit.submit_arguments import ClusterJob

_RANK = 'trap : TERM USR1; "$@"; code=$?; [ "$SLURM_PROCID" != 0 ] || echo "$code" > "$0"; exit "$code"'
"""What each task of srun runs. A shell that has a trap for a signal waits for its child, which gets the signal, too."""
_SCRIPT = """\
#!/bin/bash
{options}

{setup}# The code of rank 0 says how the session ended. That of srun is the highest one, also of ranks that are lost.
code_file={code_file}
trap : TERM USR1
srun {srun} \\
  bash -c {rank} "$code_file" \\
  {command}
srun_code=$?
code=$(cat "$code_file" 2> /dev/null || echo "$srun_code")
rm -f "$code_file"

# {interrupted} means interrupted: the same command continues. A job that was canceled or preempted is not RUNNING any
# more. Slurm itself restarts a preempted one.
if [ "$code" = {interrupted} ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {max_restarts} ] \\
    && scontrol show job "{job_id}" | grep -q JobState=RUNNING; then
  trap - TERM
  scontrol requeue "{job_id}" && sleep 300  # Slurm ends this script; if it ended by itself, the job could count as done
fi
exit "$code"
"""


def batch_script(job: ClusterJob) -> str:
    """The script for `sbatch`: the whole command, or an element of a job array with its part of a sweep."""
    return _script(job, job.array, ())


def finishing_script(job: ClusterJob, after: str) -> str:
    """The script of the job that runs the whole command when the job array `after` has ended.

    It makes what the elements left, and compares all points.
    """
    return _script(job, None, (f"dependency=afterany:{after}",))


def _script(job: ClusterJob, array: int | None, further: tuple[str, ...]) -> str:
    # The id of an element alone can be that of the whole array, too.
    job_id = "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" if array else "$SLURM_JOB_ID"
    options = [*_options(job, array), *further, *job.sbatch]
    arguments = [f'{OPTION} "$SLURM_ARRAY_TASK_ID/{array}"'] if array else []
    srun = ["--kill-on-bad-exit=0", "--no-kill", "--unbuffered"]
    if job.cpus_per_process:  # since 22.05 srun does not read that of sbatch
        srun.append(f"--cpus-per-task={job.cpus_per_process}")
    return _SCRIPT.format(
        options="\n".join(f"#SBATCH --{option}" for option in options),
        setup="".join(f"{line}\n" for line in job.setup),
        code_file=f'{shlex.quote(str(_logs(job)))}/"$SLURM_JOB_ID".code',
        srun=" ".join(srun),
        rank=shlex.quote(_RANK),
        command=" ".join([shlex.join([sys.executable, "-m", "fluxexp"]), *arguments, shlex.join(job.overrides)]),
        interrupted=int(ExitCode.INTERRUPTED),
        max_restarts=job.num_restarts,
        job_id=job_id,
    )


def _options(job: ClusterJob, array: int | None) -> Iterator[str]:
    yield f"job-name={job.name}"
    yield f"nodes={job.nodes}"
    yield f"ntasks-per-node={job.ranks_per_node}"
    if job.gpus_per_node:
        yield f"gpus-per-node={job.gpus_per_node}"
    if job.cpus_per_process:
        yield f"cpus-per-task={job.cpus_per_process}"
    if job.partition:
        yield f"partition={job.partition}"
    if job.time:
        yield f"time={job.time}"
    if array:
        yield f"array=0-{array - 1}"
    yield f"chdir={Path.cwd()}"
    yield f"output={_logs(job)}/{'%x-%A_%a.out' if array else '%x-%j.out'}"
    yield "open-mode=append"
    yield "requeue"
    yield "no-kill"  # a node that fails costs its ranks only
    yield f"signal=USR1@{job.warning_s}"  # to the ranks, not to this script


def _logs(job: ClusterJob) -> Path:
    return Path(job.logs).absolute()
