"""Faults of a GPU, in a process of their own: each leaves the run in a state that the same command continues."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fluxexp.records import Record
from fluxexp.storage.local_store import LocalStore
from fluxexp.storage.manifest import merge, read_attempts
from tests.models.faulty_gpu import is_faulty

pytestmark = pytest.mark.gpu
SIXTEEN = (
    *("+experiment=fill", "sampling.steps=4", "metrics=none", "report=off", "tracking=disabled"),
    *("optimization=none", "dataset.limit=16", "sampling.batch_size=4"),
)
_LIMIT_S = 120


def run(cwd: Path, fault: str | None, *arguments: str) -> tuple[int, str]:
    """Exit code and output of the program in `cwd`."""
    module = ["fluxexp"] if fault is None else ["tests.models.faulty_gpu", fault]
    done = subprocess.run(
        [sys.executable, "-m", *module, *SIXTEEN, *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )
    return done.returncode, done.stdout


def records(cwd: Path) -> dict[str, Record]:
    (directory,) = cwd.glob("outputs/*")
    return merge(read_attempts(LocalStore(directory)).values)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{root / 'src'}:{root}", prepend=":")


def test_nan_fails_its_own_tasks_and_no_other_of_the_batch(tmp_path: Path) -> None:
    code, output = run(tmp_path, "nan")
    assert code == 3, output
    found = records(tmp_path).values()
    assert len(found) == 16
    assert all((record.status == "failed") == is_faulty(record.seed) for record in found)
    assert any("not finite" in str(record.error) for record in found)
    code, output = run(tmp_path, None)
    assert code == 0, output


def test_a_batch_that_runs_out_of_memory_is_halved_until_it_fits(tmp_path: Path) -> None:
    large = ("dataset.height=1024", "dataset.width=1024", "sampling.batch_size=16", "sampling.steps=2")
    code, output = run(tmp_path, "memory", *large)
    assert code == 0, output
    sizes = {record.batch_size for record in records(tmp_path).values()}
    assert max(size for size in sizes if size is not None) < 16
    assert all(record.status == "ok" for record in records(tmp_path).values())


def test_an_assertion_of_a_kernel_ends_the_process_and_the_same_command_continues(tmp_path: Path) -> None:
    code, output = run(tmp_path, "assert-once")
    assert code == 1, output
    assert "device-side assert" in output
    made = {key for key, record in records(tmp_path).items() if record.status == "ok"}
    code, output = run(tmp_path, "assert-once")
    assert code == 0, output
    assert made < records(tmp_path).keys()
    assert sum(record.status == "ok" for record in records(tmp_path).values()) == 16


def test_samples_that_always_break_the_gpu_are_quarantined(tmp_path: Path) -> None:
    for _ in range(20):
        code, output = run(tmp_path, "assert", "failures.max_process_deaths=2")
        if code != 1:
            break
    assert code == 3, output
    found = records(tmp_path).values()
    assert len(found) == 16
    assert all((record.status == "failed") == is_faulty(record.seed) for record in found)


def test_a_kernel_that_does_not_end_is_a_process_that_hangs(tmp_path: Path) -> None:
    code, output = run(tmp_path, "hang", "parallelism.hung_after_s=8")
    assert code == 1, output
    assert "rank 0 made no progress for 8 s" in output
    code, output = run(tmp_path, None)
    assert code == 0, output
