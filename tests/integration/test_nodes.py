"""One session on two machines, which are network namespaces: with torchrun, accelerate, and without a launcher."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.integration.test_lost_ranks import LIMITS, summary, wait_for_image
from tests.network import Machine, network, why_not
from tests.program import FAKE
from tests.slurm_cluster import until

pytestmark = [pytest.mark.nodes, pytest.mark.slow, pytest.mark.timeout(300)]
RUN = (*FAKE, "parallelism=data", "sampling.batch_size=1", "sampling.steps=2", "dataset.limit=16", *LIMITS)
_LIMIT_S = 120
_BIN = Path(sys.executable).parent
Start = Callable[[Machine, int, str], tuple[list[str], dict[str, str]]]
"""The command and the variables for a machine, its number, and the address of machine 0."""


def torchrun_c10d(machine: Machine, number: int, first: str) -> tuple[list[str], dict[str, str]]:
    # These machines have no names, by which torchrun finds out which of them is the endpoint, and what to tell others.
    options = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "fill"]
    endpoint = ["--rdzv-endpoint", f"{first}:29400", "--rdzv-conf", f"is_host={number == 0}"]
    return [str(_BIN / "torchrun"), *options, *endpoint, "--local-addr", machine.address], {}


def torchrun_static(_: Machine, number: int, first: str) -> tuple[list[str], dict[str, str]]:
    options = ["--nnodes", "2", "--node-rank", str(number), "--nproc-per-node", "1"]
    return [str(_BIN / "torchrun"), *options, "--master-addr", first, "--master-port", "29500"], {}


def accelerate(_: Machine, number: int, first: str) -> tuple[list[str], dict[str, str]]:
    options = ["--multi_gpu", "--num_machines", "2", "--num_processes", "2", "--machine_rank", str(number)]
    address = ["--main_process_ip", first, "--main_process_port", "29500"]
    return [str(_BIN / "accelerate"), "launch", *options, *address], {}


def no_launcher(_: Machine, number: int, first: str) -> tuple[list[str], dict[str, str]]:
    variables = {"RANK": str(number), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    return [sys.executable], {**variables, "MASTER_ADDR": first, "MASTER_PORT": "29500"}


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with network(2) as connected:
        yield connected


def start(machines: Sequence[Machine], how: Start, cwd: Path, *arguments: str) -> list[subprocess.Popen[str]]:
    started = []
    for number, machine in enumerate(machines):
        command, variables = how(machine, number, machines[0].address)
        started.append(machine.start([*command, "-m", "fluxexp", *RUN, *arguments], cwd, **variables))
    return started


STARTS = (torchrun_c10d, torchrun_static, accelerate, no_launcher)


@pytest.mark.parametrize("how", STARTS)
def test_two_machines_make_one_run(machines: list[Machine], tmp_path: Path, how: Start) -> None:
    started = start(machines, how, tmp_path, "model.seconds_per_step=[0.1]")
    outputs = [process.communicate(timeout=_LIMIT_S)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    made = summary(tmp_path)
    assert (made["status"], made["num_ok"], len(made["ranks"])) == ("complete", 16, 2)
    assert all(rank["num_images"] > 0 for rank in made["ranks"])


@pytest.mark.parametrize("how", STARTS)
def test_a_machine_that_fails_costs_its_ranks_only(machines: list[Machine], tmp_path: Path, how: Start) -> None:
    started = start(machines, how, tmp_path, "model.seconds_per_step=[0.2,0.4]")
    wait_for_image(tmp_path, 0)
    wait_for_image(tmp_path, 1)
    machines[1].fail()
    made = until(lambda: next(iter(tmp_path.glob("outputs/*/summary.json")), None), "summary", _LIMIT_S)
    values = json.loads(made.read_text())
    assert (values["status"], values["num_ok"]) == ("complete", 16)
    assert "lost" in values["ranks"][1]["error"]
    if how is no_launcher:
        started[0].communicate(timeout=_LIMIT_S)
        assert started[0].returncode == 0
    else:  # the launcher waits for the other machine, for minutes
        machines[0].kill()
