"""torchrun restarts the ranks after one of them died, on one machine and on two."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.integration.test_lost_ranks import EIGHT, summary, wait_for_image
from tests.program import Program, free_port

pytestmark = pytest.mark.slow
SLOW = (*EIGHT, "model.seconds_per_step=[0.1]")
_LIMIT_S = 90


@pytest.fixture
def agents() -> Iterator[list[subprocess.Popen[str]]]:
    """Launchers of a test, which are ended at its end with all ranks that they started."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def torchrun(program: Program, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(Path(sys.executable).parent / "torchrun"), "--max-restarts", "3", *options, "-m", "fluxexp", *SLOW],
        cwd=program.cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
    )


def rank_processes(agent: subprocess.Popen[str]) -> dict[int, int]:
    """Process ids of the ranks that a launcher has started, by rank."""
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    found = {}
    for child in map(int, children):
        variables = Path(f"/proc/{child}/environ").read_bytes().decode(errors="replace").split("\0")
        environment = dict(variable.split("=", 1) for variable in variables if "=" in variable)
        if "RANK" in environment:
            found[int(environment["RANK"])] = child
    return found


def test_ranks_that_torchrun_restarts_find_each_other_again(
    program: Program, agents: list[subprocess.Popen[str]]
) -> None:
    agents.append(torchrun(program, "--nproc-per-node", "2", "--master-port", str(free_port())))
    wait_for_image(program.cwd, 1)
    os.kill(rank_processes(agents[0])[1], signal.SIGKILL)
    output, _ = agents[0].communicate(timeout=_LIMIT_S)
    assert agents[0].returncode == 0, output
    assert summary(program.cwd)["num_ok"] == 8


def test_ranks_of_two_machines_find_each_other_after_a_restart(
    program: Program, agents: list[subprocess.Popen[str]]
) -> None:
    """Each machine counts its own restarts, so only a random name of the launch is new on both."""
    endpoint = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free_port()}", "--rdzv-id", "two")
    agents += [torchrun(program, "--nnodes", "2", "--nproc-per-node", "1", *endpoint) for _ in range(2)]
    wait_for_image(program.cwd, 1)
    (killed,) = [pids[1] for agent in agents if 1 in (pids := rank_processes(agent))]
    os.kill(killed, signal.SIGKILL)
    deadline = time.monotonic() + _LIMIT_S
    while any(agent.poll() is None for agent in agents) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [agent.poll() for agent in agents] == [0, 0]
    assert summary(program.cwd)["num_ok"] == 8
