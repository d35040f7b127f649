"""A real Slurm cluster on this machine: munged, slurmctld, and a slurmd for each node. Debian: slurm-wlm."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil

from tests.program import free_port

T = TypeVar("T")
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch")
_STARTS_S = 30
_CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
SlurmdParameters=config_overrides
AuthInfo=socket={directory}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/%n.pid
ReturnToService=2
KillWait=30
SlurmdTimeout=10
SchedulerParameters=batch_sched_delay=0,sched_interval=1,requeue_delay=1
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=9
"""


@dataclass
class SlurmCluster:
    """The running cluster. `environment` makes the commands of Slurm use it."""

    directory: Path
    environment: dict[str, str]
    ends: ExitStack
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    hurried: set[tuple[str, str]] = field(default_factory=set)
    """Jobs and their restarts that do not wait as long as Slurm wants."""

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """Run a command of Slurm or of fluxexp to its end. Returns its output; an error fails the test."""
        done = subprocess.run(
            command, cwd=cwd, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says."""
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "--oneliner", "show", "job", number)))

    def wait(self, number: str, *states: str, timeout_s: float = 90) -> dict[str, str]:
        """Wait until a job has one of `states`. A job that Slurm wants to restart later is restarted now."""

        def in_state() -> dict[str, str] | None:
            job = self.job(number)
            restart = (number, job["Restarts"])
            if job["JobState"] == "PENDING" and job["Reason"] == "BeginTime" and restart not in self.hurried:
                # Slurm waits two minutes. A node refuses the next start within the second of the revoked one.
                self.hurried.add(restart)
                self.run("scontrol", "update", f"JobId={number}", "StartTime=now+4")
            return job if job["JobState"] in states else None

        return until(in_state, f"job {number} in {states}", timeout_s)

    def start_node(self, name: str) -> None:
        """Start the daemon of a node."""
        self.start(name, ["slurmd", "-D", "-f", self.environment["SLURM_CONF"], "-N", name])

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start a daemon, which ends with the cluster."""
        log = self.ends.enter_context((self.directory / f"{name}.log").open("ab"))
        daemon = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)
        self.daemons[name] = daemon
        self.ends.callback(_end, daemon)

    def kill_node(self, name: str) -> None:
        """Kill the daemon of a node, and all that it runs: the machine is gone."""
        self.daemons[name].kill()
        marks = {f"SLURM_CONF={self.directory}/slurm.conf", f"SLURMD_NODENAME={name}"}
        tasks = [process for process in psutil.process_iter() if marks <= _environment(process)]
        managers = {process.parent() for process in tasks}
        for process in (*(m for m in managers if m is not None and m.name() == "slurmstepd"), *tasks):
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _environment(process: psutil.Process) -> set[str]:
    try:
        return {f"{key}={value}" for key, value in process.environ().items()}
    except psutil.Error:
        return set()


def until(condition: Callable[[], T | None], what: str, timeout_s: float) -> T:
    """Wait for a result of `condition`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if (found := condition()) is not None:
            return found
        time.sleep(0.2)
    raise AssertionError(f"no {what} within {timeout_s} s")


def why_not() -> str | None:
    """Why no cluster can be started here; None if one can."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        return f"needs {', '.join(missing)}: apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "needs root, because slurmd starts jobs as their users"


@contextmanager
def slurm_cluster(directory: Path, nodes: Sequence[str] = ("n1", "n2")) -> Iterator[SlurmCluster]:
    """Start a cluster, and end it."""
    host = socket.gethostname().partition(".")[0]
    lines = [f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs=2" for name in nodes]
    config = directory / "slurm.conf"
    config.write_text(_CONFIG.format(host=host, port=free_port(), directory=directory, nodes="\n".join(lines)))
    (directory / "state").mkdir()
    key = directory / "munge.key"
    key.write_bytes(secrets.token_bytes(64))
    key.chmod(0o600)
    munged = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={directory}/munge.socket"]
    munged += [f"--{name}-file={directory}/munge.{name}" for name in ("pid", "log", "seed")]
    with ExitStack() as ends:
        cluster = SlurmCluster(directory, {**os.environ, "SLURM_CONF": str(config)}, ends)
        cluster.start("munged", munged)
        cluster.start("slurmctld", ["slurmctld", "-D", "-f", str(config)])
        for name in nodes:
            cluster.start_node(name)
        until(lambda: _idle(cluster, len(nodes)), "idle nodes", _STARTS_S)
        yield cluster
        subprocess.run(["scancel", "--full", "--user=root"], env=cluster.environment, check=False)


def _idle(cluster: SlurmCluster, count: int) -> dict[str, str] | None:
    done = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %t"],
        env=cluster.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    states = dict(line.split() for line in done.stdout.splitlines())
    return states if list(states.values()) == ["idle"] * count else None


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
