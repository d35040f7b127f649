"""Summary, report, contact sheet and sweep.json are made again when they are missing, old or damaged."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fluxexp.address import Address
from fluxexp.config import RunConfig, check
from fluxexp.experiment import Outcome, SweepPoint, run_experiment, run_sweep
from tests.faults.shim import small_disk
from tests.program import Program
from tests.warm import PATCH

Compose = Callable[..., RunConfig]
SMALL = ("model=fake", "dataset.height=32", "dataset.width=32", "dataset.limit=2", "metrics=none", "tracking=disabled")
ELSEWHERE = Address.of("outputs")


def make_run(compose: Compose, root: Path, *changes: str) -> Outcome:
    config = compose(*SMALL, f"output.dir={root}", *changes)
    check(config)
    return run_experiment(config, ELSEWHERE, [])


def make_sweep(compose: Compose, root: Path) -> list[Outcome]:
    points = [[f"sampling.steps={steps}"] for steps in (2, 4)]
    configs = [compose(*SMALL, f"output.dir={root}", *overrides) for overrides in points]
    return run_sweep([SweepPoint(o, config) for o, config in zip(points, configs, strict=True)], ELSEWHERE)


def contents(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(file.relative_to(directory)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in directory.rglob("*")
        if file.is_file() and file.name != ".lock"
    }


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {}


@pytest.fixture
def run(originals: dict[str, Path], compose: Compose, tmp_path: Path) -> Path:
    """A copy of a finished run with its report."""
    if "run" not in originals:
        originals["run"] = tmp_path / "original"
        make_run(compose, originals["run"])
    copy = tmp_path / "results"
    shutil.copytree(originals["run"], copy)
    (directory,) = copy.iterdir()
    return directory


def truncate(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def clear(file: Path) -> None:
    file.write_bytes(b"")


def make_old(file: Path) -> None:
    os.utime(file, (1, 1))


def fill_with_noise(file: Path) -> None:
    file.write_bytes(bytes(range(256)) * 10)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "damage", [Path.unlink, pytest.param(truncate, marks=SLOW), pytest.param(clear, marks=SLOW), fill_with_noise]
)
@pytest.mark.parametrize("name", ["summary.json", "report.html", "contact_sheet.png"])
def test_a_missing_or_damaged_file_is_made_again(
    run: Path, compose: Compose, name: str, damage: Callable[[Path], None]
) -> None:
    before = contents(run)
    damage(run / name)
    outcome = make_run(compose, run.parent)
    assert (outcome.status, outcome.summary["num_ok"]) == ("complete", 2)
    after = contents(run)
    assert after.keys() >= before.keys()
    assert {key: after[key] for key in after if key.startswith("images/")} == {
        key: before[key] for key in before if key.startswith("images/")
    }
    if name != "summary.json":
        assert after[name][0] == before[name][0]
    make_run(compose, run.parent)
    assert contents(run) == after, "and then nothing changes"


def test_a_report_that_is_older_than_the_summary_is_made_again(run: Path, compose: Compose) -> None:
    make_old(run / "report.html")
    make_run(compose, run.parent)
    assert (run / "report.html").stat().st_mtime > 1


def test_nothing_is_written_if_everything_is_there(run: Path, compose: Compose) -> None:
    before = contents(run)
    make_run(compose, run.parent)
    assert contents(run) == before


def test_files_of_a_sweep_are_made_again(tmp_path: Path, compose: Compose) -> None:
    outcomes = make_sweep(compose, tmp_path)
    (sweep,) = tmp_path.glob("*-sweep-*")
    before = contents(tmp_path)
    make_sweep(compose, tmp_path)
    assert contents(tmp_path) == before, "nothing is written if everything is there"
    (sweep / "sweep.json").unlink()
    truncate(sweep / "report.html")
    (outcomes[1].address.local_path() / "report.html").unlink()
    again = make_sweep(compose, tmp_path)
    assert [outcome.status for outcome in again] == ["complete", "complete"]
    after = contents(tmp_path)
    assert after.keys() == before.keys()
    assert after[str((sweep / "report.html").relative_to(tmp_path))][0].rstrip().endswith(b"</html>")
    fill_with_noise(sweep / "sweep.json")
    make_sweep(compose, tmp_path)
    assert contents(tmp_path)[str((sweep / "sweep.json").relative_to(tmp_path))][0].startswith(b"{")


KILLED_AT_THE_REPORT = """
import os, signal
import fluxexp.report
fluxexp.report.write_report = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_run_that_was_killed_before_its_report_gets_one(
    program: Program, tmp_path: Path, compose: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch = tmp_path / "patch.py"
    patch.write_text(KILLED_AT_THE_REPORT)
    monkeypatch.setenv(PATCH, str(patch))
    done = program.run(*SMALL)
    assert done.returncode == -signal.SIGKILL, done.stderr
    directory = done.directory
    assert (directory / "summary.json").exists()
    assert not (directory / "report.html").exists()
    assert make_run(compose, directory.parent).status == "complete"
    assert (directory / "report.html").read_text().rstrip().endswith("</html>")
    assert (directory / "contact_sheet.png").exists()


def test_a_disk_that_is_full_at_the_report_is_not_success(
    tmp_path: Path, compose: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", kib=512) as disk:  # a report has more than a megabyte
        outcome = make_run(compose, disk, "output.retry_s=0")
        assert outcome.status == "incomplete", "which is exit code 1"
        err = capsys.readouterr().err
        assert "no report" in err
        assert "No space left on device" in err
        assert "run the same command again" in err
        (directory,) = disk.iterdir()
        assert not list(directory.glob(".partial-*"))
        assert not (directory / "report.html").exists()
        subprocess.run(["mount", "-o", "remount,size=32m", str(disk)], check=True)
        assert make_run(compose, disk, "output.retry_s=0").status == "complete"
        assert (directory / "report.html").exists()
