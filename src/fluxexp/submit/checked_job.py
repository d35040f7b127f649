"""Checks the command of a job where it is submitted, so that no job waits in a queue for a mistake."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager

from fluxexp.address import Address
from fluxexp.cli.arguments import only_shows, parse_arguments, wants_sweep
from fluxexp.cli.compose import CheckedCommand, check_command
from fluxexp.cli.location import MAIN_CONFIG, config_directory
from fluxexp.cli.sweep_part import OPTION, refuse_part
from fluxexp.errors import ConfigError, Problem
from fluxexp.rank_environment import RankEnvironment
from fluxexp.submit.submit_arguments import ClusterJob


def checked_job(job: ClusterJob) -> ClusterJob:
    """Return `job` if its command can be run, as far as this machine can tell.

    Files that the command names are looked up for Slurm, whose nodes share them with the machine that submits.

    Raises:
        ConfigError: the command has a mistake, or its results would be lost.
    """
    args = parse_arguments(job.overrides)
    if only_shows(args) or args.part is not None:
        what = f"shows something, or has {OPTION}, which --array sets"
        raise ConfigError(Problem("OVERRIDES", what, " ".join(job.overrides), "start it without fluxexp.submit"))
    with _as_rank_0_of(job):
        checked = check_command(
            config_directory(),
            args.config_name or MAIN_CONFIG,
            args.overrides,
            wants_sweep(args),
            config_dir=args.config_dir,
            has_files=job.target == "slurm",
        )
    if job.array:
        refuse_part(job.array, is_pool=checked.is_pool, is_search=checked.is_search, option="--array")
    if job.target == "kubernetes":
        _refuse_lost_results(job, checked)
    return job


def _refuse_lost_results(job: ClusterJob, checked: CheckedCommand) -> None:
    directory = checked.config.output.dir
    if not job.volume and (directory is None or Address.of(directory).is_local):
        hint = "add --volume CLAIM:PATH, or use output.dir=s3://BUCKET/PREFIX"
        raise ConfigError(Problem("output.dir", "is a directory of a container, which ends with it", directory, hint))


@contextmanager
def _as_rank_0_of(job: ClusterJob) -> Generator[None]:
    """Within this context the environment is that of rank 0 of the job, which some checks read."""
    before = dict(os.environ)
    size = job.world_size
    RankEnvironment(world_size=size, local_world_size=size, master_addr="localhost", master_port=1).publish()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
