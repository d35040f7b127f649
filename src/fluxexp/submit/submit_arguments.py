"""The options of `python -m fluxexp.submit`: where a command of fluxexp runs, and with which resources."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from fluxexp.errors import ConfigError, Problem

PROGRAM = "python -m fluxexp.submit"
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
"""A DNS label, as Kubernetes demands, short enough for the number of a pod after it."""
_ONLY = {
    "slurm": ("time", "partition", "sbatch", "setup", "logs", "gpus_per_node", "processes_per_node"),
    "kubernetes": ("image", "volume", "namespace", "memory", "env_from", "gpu_resource"),
}
"""Options that only one target has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterJob:
    """A command of fluxexp, and the part of a cluster that runs it."""

    overrides: tuple[str, ...]
    """The arguments of `python -m fluxexp`."""
    target: str
    """`slurm` or `kubernetes`."""
    dry_run: bool
    name: str
    nodes: int
    """Machines of one session. Kubernetes places each process by itself, so there it is the number of processes."""
    array: int | None
    """Number of independent jobs, each with its part of the points of a sweep. None: one job."""
    cpus_per_process: int | None
    warning_s: int
    """Seconds between the warning and the end of a job."""
    max_restarts: int | None
    gpus_per_node: int | None
    processes_per_node: int | None
    time: str | None
    partition: str | None
    sbatch: tuple[str, ...]
    setup: tuple[str, ...]
    logs: str
    image: str | None
    volume: tuple[str, ...]
    namespace: str | None
    memory: str | None
    env_from: tuple[str, ...]
    gpu_resource: str

    @property
    def num_restarts(self) -> int:
        """Most restarts: of an interrupted job of Slurm, or of a process that failed in Kubernetes."""
        return self.max_restarts or (100 if self.target == "slurm" else 6)

    @property
    def ranks_per_node(self) -> int:
        """Processes on each node."""
        return self.processes_per_node or self.gpus_per_node or 1

    @property
    def world_size(self) -> int:
        """Processes of one session."""
        return self.nodes * self.ranks_per_node


def parse_job(arguments: Sequence[str] | None = None) -> ClusterJob:
    """Read the command line, by default that of this process.

    Raises:
        ConfigError: an option is unknown or wrong, or has no effect with this target.
    """
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    given["target"] = given.pop("to")
    problems = [*_foreign(given, parser), *_wrong(given)]
    if problems:
        raise ConfigError(problems)
    values: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in given.items()}
    return ClusterJob(**values)


class _SubmitParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(Problem("command line", message, hint=f"`{PROGRAM} --help` lists the options"))


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number of at least 1, not {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    what = "Run a command of fluxexp on a cluster, as one pool of processes. docs/nodes.md has examples."
    parser = _SubmitParser(prog=PROGRAM, description=what, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*", help="what follows `python -m fluxexp`, after `--`")
    parser.add_argument("--to", choices=("slurm", "kubernetes"), default="slurm", help="default: slurm")
    parser.add_argument("--dry-run", action="store_true", help="print what would be submitted")
    parser.add_argument("--name", default="fluxexp", help="of the job; default: fluxexp")
    parser.add_argument("--nodes", type=_positive, default=1, help="nodes of one session; in Kubernetes: processes")
    parser.add_argument("--array", type=_positive, help="number of jobs, each with a part of the points of a sweep")
    parser.add_argument("--cpus-per-process", type=_positive, help="CPU cores of each process")
    parser.add_argument("--warning-s", type=_positive, default=120, help="seconds to finish and save; default: 120")
    parser.add_argument(
        "--max-restarts",
        type=_positive,
        help="Slurm: of an interrupted job (default: 100); Kubernetes: of a failed process (default: 6)",
    )
    slurm = parser.add_argument_group("Slurm")
    slurm.add_argument("--gpus-per-node", type=_positive, help="GPUs of each node, with a process for each")
    slurm.add_argument("--processes-per-node", type=_positive, help="default: one for each GPU, or one")
    slurm.add_argument("--time", help="time limit, as sbatch reads it: 4:00:00")
    slurm.add_argument("--partition", help="partition")
    slurm.add_argument("--sbatch", action="append", default=[], metavar="NAME=VALUE", help="another option of sbatch")
    slurm.add_argument(
        "--setup", action="append", default=[], metavar="LINE", help="shell line to run on the first node before `srun`"
    )
    slurm.add_argument("--logs", default="slurm", help="directory of the output; default: slurm")
    kubernetes = parser.add_argument_group("Kubernetes")
    kubernetes.add_argument("--image", help="container image with fluxexp")
    kubernetes.add_argument(
        "--volume",
        action="append",
        default=[],
        metavar="CLAIM:PATH",
        help="persistent volume claim; the first one is the working directory",
    )
    kubernetes.add_argument("--namespace", help="default: that of kubectl")
    kubernetes.add_argument("--memory", help="memory of each process: 64Gi")
    kubernetes.add_argument(
        "--env-from",
        action="append",
        default=[],
        metavar="SECRET",
        help="secret whose values become environment variables",
    )
    kubernetes.add_argument(
        "--gpu-resource",
        default="nvidia.com/gpu",
        help="resource of which each process gets one; none for CPUs; default: nvidia.com/gpu",
    )
    return parser


def _foreign(given: dict[str, Any], parser: argparse.ArgumentParser) -> list[Problem]:
    """Options of the other target: they would have no effect."""
    return [
        Problem(f"--{key.replace('_', '-')}", f"has no effect with --to {given['target']}", hint=f"it is for {target}")
        for target, keys in _ONLY.items()
        for key in keys
        if target != given["target"] and given[key] != parser.get_default(key)
    ]


def _wrong(given: dict[str, Any]) -> list[Problem]:
    problems = []
    if not _NAME.fullmatch(given["name"]):
        hint = "use up to 40 lower-case letters, digits and hyphens, and begin with a letter"
        problems.append(Problem("--name", "is not a name for a job", given["name"], hint))
    for item in given["sbatch"]:
        if not re.fullmatch(r"[a-z][-a-z0-9]*(=[^\n]*)?", item):
            problems.append(Problem("--sbatch", "is not NAME or NAME=VALUE", item, "write --sbatch account=vision"))
    for item in given["volume"]:
        if not re.fullmatch(r"[a-z0-9][-a-z0-9.]*:/[^:\n]*", item):
            problems.append(Problem("--volume", "is not CLAIM:PATH", item, "write --volume results:/work"))
    if given["target"] == "kubernetes" and given["image"] is None:
        problems.append(Problem("--image", "is not set", hint="name a container image that has fluxexp"))
    if given["array"] and given["target"] == "kubernetes" and given["nodes"] > 1:
        what, hint = "excludes --array: each element of an Indexed Job is one process", "use one of them"
        problems.append(Problem("--nodes", what, given["nodes"], hint))
    return problems
