"""Ranks that die or hang, in real processes without a launcher that would end the others."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from tests.program import FAKE, TINY, Program, free_port
from tests.warm import WarmProcess

pytestmark = pytest.mark.slow
LIMITS = ("parallelism.lost_after_s=3", "parallelism.hung_after_s=20")
EIGHT = (*FAKE, "parallelism=data", "dataset.limit=8", "sampling.batch_size=1", "sampling.steps=2", *LIMITS)
_LIMIT_S = 60


@pytest.fixture
def ranks() -> Iterator[list[WarmProcess]]:
    """Processes of a test, which are ended at its end."""
    started: list[WarmProcess] = []
    yield started
    for process in started:
        process.end()


def wait_for_image(directory: Path, rank: int) -> None:
    """Wait until `rank` has recorded a task."""
    deadline = time.monotonic() + _LIMIT_S
    while time.monotonic() < deadline:
        lines = [line for file in directory.glob("*/*/manifest/*.jsonl") for line in whole_lines(file)]
        if any(json.loads(line)["rank"] == rank for line in lines):
            return
        time.sleep(0.02)
    raise AssertionError(f"rank {rank} recorded nothing")


def wait_for_work(directory: Path, rank: int) -> None:
    """Wait until `rank` has begun its first task."""
    deadline = time.monotonic() + _LIMIT_S
    while time.monotonic() < deadline:
        logs = [whole_lines(file) for file in directory.glob("*/*/attempts/*.jsonl")]
        if any(lines and json.loads(lines[0])["process"]["rank"] == rank for lines in logs):
            return
        time.sleep(0.02)
    raise AssertionError(f"rank {rank} began nothing")


def whole_lines(file: Path) -> list[str]:
    """The lines of a file that another process appends to. Its last one may be half-written, or the file deleted."""
    try:
        return [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    except FileNotFoundError:
        return []


def summary(directory: Path) -> dict[str, Any]:
    (file,) = directory.glob("outputs/*/summary.json")
    values: dict[str, Any] = json.loads(file.read_text())
    return values


def test_a_rank_that_is_killed_is_lost_and_the_others_make_its_images(
    program: Program, ranks: list[WarmProcess]
) -> None:
    ranks += program.start_ranks(*EIGHT, "model.seconds_per_step=[0.25,1000]")
    wait_for_work(program.cwd, 1)
    ranks[1].kill()
    output, _ = ranks[0].communicate(timeout=_LIMIT_S)
    assert ranks[0].returncode == 0, output
    assert "rank 1: lost: no heartbeat" in output
    assert (summary(program.cwd)["status"], summary(program.cwd)["num_ok"]) == ("complete", 8)
    assert "lost: no heartbeat" in summary(program.cwd)["ranks"][1]["error"]


def test_a_static_shard_of_a_dead_rank_is_offered_again(program: Program, ranks: list[WarmProcess]) -> None:
    ranks += program.start_ranks(*EIGHT, "parallelism.schedule=static", "model.seconds_per_step=[0.01,0.5]")
    wait_for_image(program.cwd, 1)
    ranks[1].kill()
    output, _ = ranks[0].communicate(timeout=_LIMIT_S)
    assert ranks[0].returncode == 0, output
    assert "rank(s) 1 stopped early: rank(s) 0 make the" in output
    assert summary(program.cwd)["num_ok"] == 8


def test_a_stopped_rank_that_continues_learns_that_it_was_taken_for_lost(
    program: Program, ranks: list[WarmProcess]
) -> None:
    ranks += program.start_ranks(*EIGHT, "model.seconds_per_step=[0.4,1]", processes=3)
    wait_for_work(program.cwd, 1)
    ranks[1].send_signal(signal.SIGSTOP)
    ranks[0].wait(timeout=_LIMIT_S)
    ranks[1].send_signal(signal.SIGCONT)
    outputs = [process.communicate(timeout=_LIMIT_S)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 1, 0], "\n====\n".join(outputs)
    assert summary(program.cwd)["num_ok"] == 8


def test_a_rank_that_hangs_with_a_heartbeat_is_lost_by_its_progress_and_ends(
    program: Program, ranks: list[WarmProcess]
) -> None:
    ranks += program.start_ranks(*EIGHT, "model.seconds_per_step=[0.01,1000]", "parallelism.hung_after_s=4")
    outputs = [process.communicate(timeout=_LIMIT_S)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 1], outputs
    assert "has a heartbeat, but made no progress" in outputs[0]
    assert "rank 1 made no progress for 4 s" in outputs[1]
    assert "denoise" in outputs[1], "the stack shows where it hangs"
    assert summary(program.cwd)["num_ok"] == 8


def test_a_single_process_that_hangs_ends_and_can_be_continued(program: Program) -> None:
    with program.start_warm(*EIGHT, "model.seconds_per_step=[1000]", "parallelism.hung_after_s=3") as process:
        _, stderr = process.communicate(timeout=_LIMIT_S)
    assert process.returncode == 1
    assert "rank 0 made no progress for 3 s" in stderr
    assert program.run(*EIGHT).summary["num_ok"] == 8


def test_the_others_end_when_rank_0_dies_with_the_store(program: Program, ranks: list[WarmProcess]) -> None:
    ranks += program.start_ranks(*EIGHT, "model.seconds_per_step=[0.3]")
    wait_for_image(program.cwd, 0)
    ranks[0].kill()
    output, _ = ranks[1].communicate(timeout=_LIMIT_S)
    assert ranks[1].returncode == 1
    assert "lost the store that all ranks share" in output
    assert "run the same command again to continue" in output
    assert program.run(*EIGHT).summary["num_ok"] == 8


def test_the_others_end_when_rank_0_dies_and_a_launcher_keeps_the_store(
    program: Program, ranks: list[WarmProcess]
) -> None:
    port = free_port()
    store = TCPStore("localhost", port, is_master=True, wait_for_workers=False)
    ranks += program.start_ranks(*EIGHT, "model.seconds_per_step=[0.3]", store=(port, True))
    wait_for_image(program.cwd, 0)
    ranks[0].kill()
    output, _ = ranks[1].communicate(timeout=_LIMIT_S)
    del store
    assert ranks[1].returncode == 1
    assert "rank 0 is lost: no heartbeat" in output
    done = program.run(*EIGHT)
    assert done.returncode == 0
    assert done.summary["num_ok"] == 8


def test_the_leader_of_a_replica_goes_on_alone_when_its_follower_dies(
    program: Program, ranks: list[WarmProcess]
) -> None:
    options = ("dataset.limit=4", "sampling.batch_size=1", "sampling.steps=40", "parallelism=context", *LIMITS)
    ranks += program.start_ranks(*TINY, *options)
    wait_for_image(program.cwd, 0)
    ranks[1].kill()
    output, _ = ranks[0].communicate(timeout=_LIMIT_S)
    assert ranks[0].returncode == 0, output
    assert summary(program.cwd)["num_ok"] == 4


def test_an_error_of_rank_0_reaches_the_others_although_it_keeps_the_store(
    program: Program, ranks: list[WarmProcess]
) -> None:
    assert program.run(*EIGHT).returncode == 0
    (fingerprint,) = program.cwd.glob("outputs/*/fingerprint.json")
    fingerprint.write_text("{}")
    ranks += program.start_ranks(*EIGHT)
    outputs = [process.communicate(timeout=_LIMIT_S)[0] for process in ranks]
    assert "was made by another config" in outputs[0]
    assert all(process.returncode for process in ranks)
    assert "lost the store" not in outputs[1]


def test_a_rank_that_never_starts_is_left_out(program: Program, ranks: list[WarmProcess]) -> None:
    started = program.start_ranks(*EIGHT, "parallelism.join_timeout_s=4", processes=3)
    ranks += started
    started[2].kill()
    outputs = [process.communicate(timeout=_LIMIT_S)[0] for process in started[:2]]
    assert [process.returncode for process in started[:2]] == [0, 0], outputs
    assert "rank(s) [2] did not start in time" in outputs[0]
    assert summary(program.cwd)["num_ok"] == 8
