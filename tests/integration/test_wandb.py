"""What a run logs to W&B, read back from W&B's offline files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.program import FAKE, Program

ONLINE_IF_POSSIBLE = tuple(argument for argument in FAKE if not argument.startswith("tracking"))
SLOW = ("model.seconds_per_step=[0.05]", "sampling.steps=4", "dataset.length=24", "sampling.batch_size=2")


@cache
def records_of(directory: Path) -> list[dict[str, Any]]:
    """All records of the only offline run in `directory`."""
    (log,) = directory.glob("wandb/offline-run-*/*.wandb")
    wandb = Path(sys.executable).parent / "wandb"
    done = subprocess.run(
        [str(wandb), "leet", "inspect", "--json", str(log)], capture_output=True, text=True, check=True, timeout=60
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line.strip()]


def text_of(directory: Path, kind: str) -> str:
    return json.dumps([record for record in records_of(directory) if record["type"] == kind])


def test_one_offline_run_has_the_series_of_all_ranks(program: Program) -> None:
    pictures = ("dataset.controls=outlines", "dataset.references=scenes")
    options = (*ONLINE_IF_POSSIBLE, *SLOW, *pictures, "tracking.every_s=0.5", "tracking.images=4")
    done = program.run(*options, processes=2)
    assert done.returncode == 0, done.stderr
    tracking = done.summary["tracking"]
    assert (tracking["mode"], tracking["error"], tracking["dropped"]) == ("offline", None, 0)
    history = text_of(done.directory, "history")
    for rank in (0, 1):
        for figure in ("images_per_s", "busy", "utilisation", "memory_gib", "images"):
            assert f"rank/{rank}/{figure}" in history
    assert "load/imbalance" in history
    assert "wall_s" in history
    assert "fingerprint" in text_of(done.directory, "run")
    assert "num_ok" in text_of(done.directory, "summary")
    tables = [json.loads(path.read_text()) for path in done.directory.glob("wandb/offline-run-*/**/*.table.json")]
    rows = [row for table in tables for row in table["data"]]
    assert len(rows) == 4
    names = ["input", "control", "reference", "mask", "result", "truth"]
    assert tables[0]["columns"] == ["key", "sample", *names, "prompt", "seed"]
    assert all(None not in row for row in rows)
    assert {row[0] for row in rows} <= done.records.keys()


@pytest.mark.slow
def test_sigterm_leaves_a_readable_run(program: Program) -> None:
    with program.start(*ONLINE_IF_POSSIBLE, *SLOW, "tracking.every_s=0.2") as process:
        while len(list(program.cwd.glob("outputs/*/images/*.png"))) < 12:
            assert process.poll() is None
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 75
    (directory,) = program.directories()
    assert "rank/0/images" in text_of(directory, "history")


def test_a_broken_wandb_changes_only_the_tracking_report(program: Program, tmp_path: Path) -> None:
    broken = tmp_path / "broken" / "wandb"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('this wandb is broken')")
    old = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(broken.parent)
    try:
        done = program.run(*ONLINE_IF_POSSIBLE, "dataset.limit=2")
    finally:
        os.environ.pop("PYTHONPATH") if old is None else os.environ.update(PYTHONPATH=old)
    assert done.returncode == 0, done.stderr
    assert done.summary["status"] == "complete"
    assert "this wandb is broken" in done.summary["tracking"]["error"]
    assert "this wandb is broken" in done.stdout


@pytest.mark.slow
def test_an_unreachable_server_is_said_while_the_ranks_work(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # no server listens there
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    begun = time.monotonic()
    slow = ("model.seconds_per_step=[0.8]", "sampling.steps=1", "dataset.length=40", "sampling.batch_size=1")
    with program.start(*ONLINE_IF_POSSIBLE, "tracking.mode=online", *slow) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        told = next(line for line in process.stderr if line.startswith("W&B: "))
        assert "logged offline, because online failed" in told
        assert time.monotonic() - begun < 60
        assert len(list(program.cwd.glob("outputs/*/images/*.png"))) < 40, "the ranks still work"
        stdout, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    (directory,) = program.directories()
    tracking = json.loads((directory / "summary.json").read_text())["tracking"]
    assert (tracking["mode"], tracking["dropped"]) == ("offline", 0)
    assert "40 of 40 images" in stdout
    assert "progress/done" in text_of(directory, "history")
