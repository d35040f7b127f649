"""`engine=ray` with several real raylets on this machine, each a node. `make test-ray` runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.program import FAKE, TINY, Program

pytest.importorskip("ray", reason="needs Ray: pip install fluxexp[ray]")
pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore"),  # those of Ray
]

_LIMIT_S = 240
_NODE = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 << 20}
_QUICK_DETECTION = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
}
SLOW = (*FAKE, "sampling.batch_size=1", "sampling.steps=1", "engine=ray", "engine.chunk_s=3")


class Nodes:
    """A Ray cluster whose head runs no actors. Each node that is added can run one."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": _source()}
        head = {**_NODE, "num_cpus": 0, "_system_config": _QUICK_DETECTION}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes: list[Any] = []

    def set(self, number: int) -> None:
        """Make `number` nodes."""
        while len(self.nodes) > number:
            self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)
        while len(self.nodes) < number:
            self.nodes.append(self.cluster.add_node(**{k: v for k, v in _NODE.items() if k != "include_dashboard"}))

    def kill(self) -> None:
        """Kill the raylet of a node, and its workers with it."""
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)


def _source() -> str:
    import fluxexp

    return str(Path(fluxexp.__file__).parents[1])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    nodes = Nodes()
    yield nodes
    nodes.cluster.shutdown()


class Driver:
    """A started program, and what it has written."""

    def __init__(self, program: Program, cluster: Nodes, *arguments: str) -> None:
        self.cwd = program.cwd
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fluxexp", *arguments, f"engine.address={cluster.cluster.address}"],
            cwd=program.cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def end(self, code: int = 0) -> str:
        output, _ = self.process.communicate(timeout=_LIMIT_S)
        assert self.process.returncode == code, output
        return output

    def lines(self, stream: str) -> list[dict[str, Any]]:
        found = []
        for file in sorted(self.cwd.glob(f"*/*/{stream}/*.jsonl")):
            try:
                found += [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line[-1] == "\n"]
            except FileNotFoundError:
                continue
        return found

    def wait_for(self, is_there: Callable[[], object]) -> None:
        deadline_s = time.monotonic() + _LIMIT_S
        while not is_there():
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline_s
            time.sleep(0.05)

    def ranks(self) -> set[int]:
        """Ranks that have recorded a task."""
        return {line["rank"] for line in self.lines("manifest")}

    def pids(self) -> dict[int, int]:
        """Processes that work, by rank."""
        found = [line["process"] for line in self.lines("attempts") if "process" in line]
        return {process["rank"]: process["pid"] for process in found}


def summary(directory: Path) -> dict[str, Any]:
    (file,) = directory.glob("outputs/*/summary.json")
    values: dict[str, Any] = json.loads(file.read_text())
    return values


def images(directory: Path, root: str = "outputs") -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(directory.glob(f"{root}/*/images/*"))}


def assert_made_once(driver: Driver, number: int) -> None:
    keys = [line["key"] for line in driver.lines("manifest") if line["status"] == "ok"]
    assert len(set(keys)) == number


def test_unequal_actors_balance_and_make_the_pixels_of_one_process(program: Program, cluster: Nodes) -> None:
    cluster.set(2)
    settings = (*SLOW, "sampling.images_per_sample=8", "model.seconds_per_step=[0.1,0.4]")
    driver = Driver(program, cluster, *settings)
    output = driver.end()
    assert_made_once(driver, 128)
    ranks = summary(program.cwd)["ranks"]
    made = {rank["rank"]: rank["num_images"] for rank in ranks}
    assert sum(made.values()) == 128
    fast, slow = max(made.values()), min(made.values())
    assert fast > 1.5 * slow > 0, output
    made_by_ray = images(program.cwd)
    done = program.run(*(s for s in settings if not s.startswith("engine")), "output.dir=alone", root="alone")
    assert done.images == made_by_ray


def test_a_real_network_has_the_pixels_of_one_process(program: Program, cluster: Nodes) -> None:
    cluster.set(2)
    settings = (*TINY, "sampling.batch_size=1", "dataset.limit=6")
    output = Driver(program, cluster, *settings, "engine=ray").end()
    made_by_ray = images(program.cwd)
    assert len(made_by_ray) == summary(program.cwd)["num_ok"] > 0, output
    assert program.run(*settings, "output.dir=alone", root="alone").images == made_by_ray


def test_two_actors_make_each_image_together_and_one_is_killed(program: Program, cluster: Nodes) -> None:
    cluster.set(0)
    node = cluster.cluster.add_node(num_cpus=2, object_store_memory=80 << 20)
    context = ("parallelism=context", "parallelism.context_size=2", "engine=ray", "sampling.images_per_sample=3")
    driver = Driver(program, cluster, *TINY, "sampling.batch_size=1", *context)
    driver.wait_for(lambda: len(driver.lines("manifest")) > 3)
    os.kill(driver.pids()[3], signal.SIGKILL)  # the second actor of the first replica
    output = driver.end()
    cluster.cluster.remove_node(node)
    found = summary(program.cwd)
    assert (found["status"], found["num_ok"]) == ("complete", 48), output
    assert {line["context_size"] for line in driver.lines("manifest")} == {2}
    assert len({line["rank"] for line in driver.lines("manifest")}) == 2


def test_an_actor_and_a_node_are_killed_and_a_node_joins(program: Program, cluster: Nodes) -> None:
    cluster.set(2)
    driver = Driver(program, cluster, *SLOW, "sampling.images_per_sample=10", "model.seconds_per_step=[0.7]")
    driver.wait_for(lambda: len(driver.ranks()) == 2)
    os.kill(next(iter(driver.pids().values())), signal.SIGKILL)  # Ray starts it again
    driver.wait_for(lambda: len(driver.ranks()) == 3)
    cluster.kill()
    cluster.set(2)
    driver.wait_for(lambda: len(driver.ranks()) == 4)
    output = driver.end()
    assert_made_once(driver, 160)
    found = summary(program.cwd)
    assert (found["status"], found["num_ok"]) == ("complete", 160), output
    lost = [rank for rank in found["ranks"] if (rank["error"] or "").startswith("lost: ")]
    assert len(lost) == 2, output


def test_a_sweep_loads_a_model_once_per_actor(program: Program, cluster: Nodes) -> None:
    cluster.set(2)
    driver = Driver(program, cluster, "-m", *SLOW, "sampling.steps=1,2,3", "model.seconds_per_step=[0.1]")
    driver.end()
    assert_made_once(driver, 48)
    (sweep,) = program.cwd.glob("multirun/*-sweep-*")
    events = [json.loads(line) for file in sweep.glob("events/*.jsonl") for line in file.read_text().splitlines()]
    assert sum(event["span"] == "load" and event["end_s"] - event["start_s"] > 0 for event in events) >= 2
    assert len({rank["rank"] for rank in json.loads((sweep / "sweep.json").read_text())["ranks"]}) == 2


def test_a_driver_that_is_killed_continues(program: Program, cluster: Nodes) -> None:
    cluster.set(2)
    settings = (*SLOW, "sampling.images_per_sample=4", "model.seconds_per_step=[0.2]")
    first = Driver(program, cluster, *settings)
    first.wait_for(lambda: len(first.lines("manifest")) > 10)
    first.process.kill()
    first.process.wait()
    second = Driver(program, cluster, *settings)
    output = second.end()
    assert_made_once(second, 64)
    assert summary(program.cwd)["num_ok"] == 64
    assert " 0 done before" not in output


def test_an_interrupted_driver_ends_with_what_is_made(program: Program, cluster: Nodes) -> None:
    cluster.set(2)
    driver = Driver(program, cluster, *SLOW, "sampling.images_per_sample=20", "model.seconds_per_step=[0.2]")
    driver.wait_for(lambda: len(driver.lines("manifest")) > 10)
    driver.process.send_signal(signal.SIGINT)
    output = driver.end(75)
    assert "interrupted: what was made is saved" in output
    assert summary(program.cwd)["interrupted"]


def test_a_node_that_does_not_see_the_results_is_named(program: Program, cluster: Nodes, tmp_path: Path) -> None:
    from fluxexp.experiment.engine.chunk_worker import ChunkWorker
    from fluxexp.experiment.engine.worker_messages import WorkerSession
    from fluxexp.experiment.session_messages import AnnouncedSession

    other = WorkerSession(
        announced=AnnouncedSession(config={}, runs=(), sweep=None, session="s", start_s=0.0, work_layouts=()),
        root="outputs",
        working_directory=str(tmp_path),
        marker=b"",
        version="another",
    )
    start = ChunkWorker().begin(other, 1)
    assert start.error is not None
    assert "this session is of another" in start.error


def test_a_wrong_address_is_a_config_error(program: Program) -> None:
    code, _, errors = program.ended((*SLOW, "engine.address=127.0.0.1:1"))
    assert code == 2
    assert "engine.address" in errors
