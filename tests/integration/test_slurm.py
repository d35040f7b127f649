"""`fluxexp.submit` with a real Slurm: slurmctld, and two nodes on this machine."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_lost_ranks import LIMITS, wait_for_image
from tests.program import FAKE
from tests.slurm_cluster import SlurmCluster, slurm_cluster, until, why_not

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(300)]
RUN = (*FAKE, "parallelism=data", "sampling.batch_size=1", "sampling.steps=2", *LIMITS)
LONG = (*RUN, "dataset.limit=16", "model.seconds_per_step=[0.3]")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """Two nodes, whose names no name server knows: so a job with both sets MASTER_ADDR."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    directory = tmp_path_factory.mktemp("slurm")
    with slurm_cluster(directory) as started:
        yield started


def submit(cluster: SlurmCluster, cwd: Path, *arguments: str) -> list[str]:
    """Submit a command. Returns the numbers of its jobs."""
    output = cluster.run(sys.executable, "-m", "fluxexp.submit", *arguments, cwd=cwd)
    return re.findall(r"job(?: array)? (\d+)[:,]", output)


def log(cwd: Path) -> str:
    return "\n".join(file.read_text() for file in sorted((cwd / "slurm").glob("*.out")))


def summary(cwd: Path, pattern: str = "outputs/*/summary.json") -> dict[str, Any]:
    (file,) = cwd.glob(pattern)
    values: dict[str, Any] = json.loads(file.read_text())
    return values


def wait_for_session(cwd: Path, number: int) -> None:
    until(lambda: log(cwd).count("\ngenerating ") >= number or None, "session that makes images", 60)


def assert_continued(cwd: Path) -> None:
    """One run whose second session made what the first one left."""
    done = summary(cwd)
    assert (done["status"], done["num_ok"]) == ("complete", 16), log(cwd)
    assert 0 < done["num_resumed"] < 16


def test_a_run_on_two_nodes_finishes(cluster: SlurmCluster, tmp_path: Path) -> None:
    two = ("--nodes", "2", "--processes-per-node", "2", "--setup", "export MASTER_ADDR=127.0.0.1")
    (job,) = submit(cluster, tmp_path, *two, "--", *RUN, "dataset.limit=16")
    assert cluster.wait(job, "COMPLETED", "FAILED")["ExitCode"] == "0:0", log(tmp_path)
    assert (summary(tmp_path)["status"], summary(tmp_path)["num_ok"]) == ("complete", 16)
    assert len(summary(tmp_path)["ranks"]) == 4


def test_a_sweep_is_one_job(cluster: SlurmCluster, tmp_path: Path) -> None:
    sweep = ("-m", *RUN, "dataset.limit=3", "sampling.steps=1,2,3")
    (job,) = submit(cluster, tmp_path, "--processes-per-node", "2", "--", *sweep)
    assert cluster.wait(job, "COMPLETED", "FAILED")["ExitCode"] == "0:0", log(tmp_path)
    whole = summary(tmp_path, "multirun/*/sweep.json")
    assert (whole["status"], whole["num_points"], whole["num_ok"], len(whole["ranks"])) == ("complete", 3, 9, 2)


def test_an_array_makes_the_points_of_a_sweep_and_a_last_job_compares_them(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    sweep = ("-m", *RUN, "dataset.limit=3", "sampling.steps=1,2,3,4")
    array, last = submit(cluster, tmp_path, "--array", "2", "--", *sweep)
    assert cluster.wait(last, "COMPLETED", "FAILED")["ExitCode"] == "0:0", log(tmp_path)
    assert "all 12 images exist" in (tmp_path / "slurm" / f"fluxexp-{last}.out").read_text()
    assert 4 in [json.loads(file.read_text())["num_points"] for file in tmp_path.glob("multirun/*/sweep.json")]
    for element in range(2):
        assert (
            f"part       {element}/2: 2 of 4 points" in (tmp_path / f"slurm/fluxexp-{array}_{element}.out").read_text()
        )


def test_a_job_that_slurm_requeues_continues(cluster: SlurmCluster, tmp_path: Path) -> None:
    (job,) = submit(cluster, tmp_path, "--", *LONG)
    wait_for_image(tmp_path, 0)
    cluster.run("scontrol", "requeue", job)
    assert cluster.wait(job, "COMPLETED", "FAILED")["Restarts"] == "1", log(tmp_path)
    assert_continued(tmp_path)


def test_a_preempted_job_continues(cluster: SlurmCluster, tmp_path: Path) -> None:
    (job,) = submit(cluster, tmp_path, "--processes-per-node", "2", "--", *LONG)
    wait_for_image(tmp_path, 1)
    urgent = cluster.run(
        "sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"
    ).strip()
    cluster.wait(urgent, "COMPLETED")
    assert cluster.wait(job, "COMPLETED", "FAILED")["Restarts"] == "1", log(tmp_path)
    assert_continued(tmp_path)


def test_a_warning_before_the_time_limit_requeues_the_job(cluster: SlurmCluster, tmp_path: Path) -> None:
    (job,) = submit(cluster, tmp_path, "--processes-per-node", "2", "--time", "5", "--", *LONG)
    wait_for_image(tmp_path, 1)
    cluster.run("scancel", "--signal=USR1", job)  # what Slurm does at --signal
    assert cluster.wait(job, "COMPLETED", "FAILED")["Restarts"] == "1", log(tmp_path)
    assert_continued(tmp_path)


def test_a_job_with_too_many_restarts_ends_as_interrupted(cluster: SlurmCluster, tmp_path: Path) -> None:
    (job,) = submit(cluster, tmp_path, "--max-restarts", "1", "--", *LONG)
    for restarts in range(2):
        cluster.wait(job, "RUNNING")
        wait_for_session(tmp_path, restarts + 1)
        cluster.run("scancel", "--signal=USR1", job)
        cluster.wait(job, "PENDING", "FAILED")
    assert cluster.wait(job, "FAILED")["ExitCode"] == "75:0", log(tmp_path)


def test_a_node_that_fails_costs_its_ranks_only(cluster: SlurmCluster, tmp_path: Path) -> None:
    two = ("--nodes", "2", "--setup", "export MASTER_ADDR=127.0.0.1")
    (job,) = submit(cluster, tmp_path, *two, "--", *LONG)
    wait_for_image(tmp_path, 1)
    cluster.kill_node("n2")
    try:
        assert cluster.wait(job, "COMPLETED", "FAILED", "NODE_FAIL")["JobState"] == "COMPLETED", log(tmp_path)
    finally:
        cluster.start_node("n2")
    assert (summary(tmp_path)["status"], summary(tmp_path)["num_ok"]) == ("complete", 16)
    assert "lost" in summary(tmp_path)["ranks"][1]["error"]
    assert "Restarts=0" in cluster.run("scontrol", "show", "job", job)


def test_a_canceled_job_saves_its_work_and_stays_canceled(cluster: SlurmCluster, tmp_path: Path) -> None:
    (job,) = submit(cluster, tmp_path, "--processes-per-node", "2", "--", *LONG)
    wait_for_image(tmp_path, 1)
    cluster.run("scancel", job)
    ended = cluster.wait(job, "CANCELLED", "PENDING")
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0")
    until(lambda: next(iter(tmp_path.glob("outputs/*/summary.json")), None), "summary", 30)
    made = summary(tmp_path)
    assert made["interrupted"]
    assert 0 < made["num_ok"] < 16


def test_tasks_that_failed_are_the_exit_code_of_the_job(cluster: SlurmCluster, tmp_path: Path) -> None:
    (job,) = submit(cluster, tmp_path, "--processes-per-node", "2", "--", *RUN, "dataset.limit=4", "model.fail_every=1")
    assert cluster.wait(job, "COMPLETED", "FAILED")["ExitCode"] == "3:0", log(tmp_path)
