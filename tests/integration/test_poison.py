"""Samples that kill the process: with a real segmentation fault, and with a real kill by the kernel for memory.

The same command is repeated, as a user or a scheduler does it, until the run is complete. Only the poisoned tasks fail.
"""

from __future__ import annotations

import json
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fluxexp.data import open_dataset
from fluxexp.experiment.pending_tasks import QUARANTINED
from fluxexp.records import task_seed
from tests.conftest import Compose
from tests.program import FAKE, TINY, Done, Program
from tests.warm import PATCH

RUN = (*FAKE, "dataset.length=12", "sampling.batch_size=3", "parallelism=data")
TOGETHER = (*TINY, "dataset.length=4", "sampling.batch_size=2", "parallelism=context", "parallelism.lost_after_s=3")
"""Two ranks make each image together."""
SEGFAULT = "import ctypes; ctypes.string_at(0)"
"""What a bug in a decoder does."""
HOARD = "hoard = [bytearray(1 << 24) for _ in range(1 << 10)]"
"""Takes 16 GiB: the control group of the test allows less."""
READING = """
from fluxexp.data.shapes.shapes_dataset import Shapes as Dataset
original = Dataset.load
def load(self, index):
    if index in {poison}:
        {action}
    return original(self, index)
Dataset.load = load
"""
MAKING = """
from fluxexp.models.fake import FakeModel
original = FakeModel.denoise
def denoise(self, jobs):
    if any(job.seed in {poison} for job in jobs):
        {action}
    return original(self, jobs)
FakeModel.denoise = denoise
"""
FOLLOWING = """
import os
from pathlib import Path
from fluxexp.models.flux1.flux1_model import Flux1Model
from fluxexp.worker.replica_model import LeadingModel
marker = Path(__file__).parent / "poisoned"
denoise, integrate = LeadingModel.denoise, Flux1Model.integrate
def lead(self, jobs):
    marker.unlink(missing_ok=True)
    if any(job.seed in {poison} for job in jobs):
        marker.touch()
    return denoise(self, jobs)
def work(self, begun):
    if marker.exists() and os.environ["RANK"] == "1":
        {action}
    return integrate(self, begun)
LeadingModel.denoise, Flux1Model.integrate = lead, work
"""
"""A follower of a replica dies in a batch with a poisoned task. A process without a replica makes it."""
JOINING = "import os\nfrom pathlib import Path\nPath({file!r}).write_text(str(os.getpid()))\n"
"""Each rank runs this before anything else, to join the control group of the test."""

Poison = Callable[..., Path]


@pytest.fixture
def poison(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Poison:
    """Writes a patch with which some tasks do `action`, and lets each rank run it."""

    def write(template: str, poison: set[int], action: str = SEGFAULT) -> Path:
        file = tmp_path_factory.mktemp("poison") / "patch.py"
        file.write_text(template.format(poison=poison, action=action))
        monkeypatch.setenv(PATCH, str(file))
        return file

    return write


def until_complete(program: Program, *arguments: str, processes: int = 1, at_most: int = 12) -> tuple[Done, list[int]]:
    """Repeat the same command until it ends in order. Returns its end and all exit codes."""
    codes = []
    for _ in range(at_most):
        done = program.run(*arguments, processes=processes)
        codes.append(done.returncode)
        file = done.directory / "summary.json"
        if file.is_file() and done.summary["status"].startswith("complete"):  # a launcher has a code of its own
            return done, codes
    raise AssertionError(f"not complete: {codes}\n{done.stderr}")


def assert_only(done: Done, num_poisoned: int, tasks: int = 12) -> None:
    failed = [record for record in done.records.values() if record.status == "failed"]
    assert [(record.error or "").startswith(QUARANTINED) for record in failed] == [True] * num_poisoned, failed
    assert done.summary["status"] == "complete_with_failures"
    assert (done.summary["num_ok"], done.summary["num_failed"]) == (tasks - num_poisoned, num_poisoned)
    assert len(done.images) == tasks - num_poisoned


@pytest.mark.slow
def test_a_sample_that_segfaults_is_quarantined_until_the_user_allows_more_deaths(
    program: Program, poison: Poison, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(READING, {7})
    done, codes = until_complete(program, *RUN)
    assert codes == [-signal.SIGSEGV] * 3 + [3]
    assert_only(done, 1)
    (failed,) = [record for record in done.records.values() if record.status == "failed"]
    assert failed.sample_key.endswith("-7")
    assert "3 processes died" in str(failed.error)
    assert "pid " in str(failed.error)

    again = program.run(*RUN)
    assert again.returncode == 3
    assert "11 of 12 images exist, and 1 tasks failed" in again.stdout
    monkeypatch.delenv(PATCH)
    cured = program.run(*RUN, "failures.max_process_deaths=4")
    assert cured.returncode == 0, cured.stderr
    assert cured.summary["num_ok"] == 12


@pytest.mark.slow
def test_two_samples_that_kill_a_group_of_ranks_are_quarantined_and_no_innocent_one(
    program: Program, poison: Poison
) -> None:
    poison(READING, {1, 8})
    done, codes = until_complete(program, *RUN, processes=2)
    assert set(codes[:-1]) == {1}
    assert_only(done, 2)


@pytest.mark.slow
def test_ranks_that_are_all_killed_at_once_blame_only_the_poisoned_task(program: Program, poison: Poison) -> None:
    """As a control group or a node ends all processes of a job: without a signal before."""
    seed = 5
    kill_all = "import os, signal; os.killpg(0, signal.SIGKILL)"
    poison(READING, {seed}, kill_all)
    done, codes = until_complete(program, *RUN, processes=2)
    assert set(codes[:-1]) == {-signal.SIGKILL}
    assert_only(done, 1)


def poison_followers(poison: Poison, compose: Compose, index: int) -> None:
    """Followers die in batches with the sample at `index`."""
    dataset = open_dataset(compose(*TOGETHER).dataset)
    poison(FOLLOWING, {task_seed(0, dataset.key(index), 0)})


@pytest.mark.slow
def test_a_task_that_kills_followers_of_replicas_is_quarantined(
    program: Program, poison: Poison, compose: Compose
) -> None:
    """The launcher ends the leader, too, which has not died of the task."""
    poison_followers(poison, compose, 1)
    done, codes = until_complete(program, *TOGETHER, processes=2)
    assert set(codes) == {1}, "the code of the launcher"
    assert_only(done, 1, tasks=4)


@pytest.mark.slow
def test_without_a_launcher_the_leader_makes_the_task_that_killed_a_follower(
    program: Program, poison: Poison, compose: Compose
) -> None:
    poison_followers(poison, compose, 1)
    processes = program.start_ranks(*TOGETHER)
    try:
        output, _ = processes[0].communicate(timeout=90)
        assert processes[1].wait(timeout=10) == -signal.SIGSEGV
    finally:
        for process in processes:
            process.end()
    assert processes[0].returncode == 0, output
    (file,) = program.cwd.glob("outputs/*/summary.json")
    assert json.loads(file.read_text())["num_ok"] == 4


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A control group (version 1) whose processes may use 1 GiB together."""
    group = Path("/sys/fs/cgroup/memory") / f"fluxexp-test-{uuid.uuid4().hex}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(1 << 30))
    except OSError as error:
        pytest.skip(f"this machine allows no control groups: {error}")
    yield group
    with suppress(OSError):
        group.rmdir()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_task_that_the_kernel_kills_for_its_memory_is_quarantined(
    program: Program, poison: Poison, memory_group: Path, processes: int
) -> None:
    patch = poison(READING, {4}, HOARD)
    patch.write_text(JOINING.format(file=str(memory_group / "cgroup.procs")) + patch.read_text())
    done, _ = until_complete(program, *RUN, processes=processes)
    killed = (memory_group / "memory.oom_control").read_text()
    assert "oom_kill 0" not in killed, "the kernel must have killed a process"
    assert_only(done, 1)
