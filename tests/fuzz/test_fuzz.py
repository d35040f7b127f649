"""The fuzzer finds faults, and finds none in a few cases of each target. `make fuzz` runs many."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fuzz import cases
from tests.fuzz.cases import Tally


@pytest.mark.slow
def test_a_few_cases_of_each_target_are_clean() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--num", "16", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_traceback_a_hang_and_an_exit_are_counted() -> None:
    tally = Tally()

    def broken(source: random.Random) -> None:
        raise KeyError("x")

    def hanging(source: random.Random) -> None:
        time.sleep(60)

    def leaving(source: random.Random) -> None:
        sys.exit(0)

    for case in (broken, hanging, leaving):
        cases._run_case(case, "case", tally, limit_s=0.2)
    assert (tally.num, len(tally.tracebacks), len(tally.hangs)) == (3, 2, 1)


def test_files_changed_outside_and_started_programs_are_seen(tmp_path: Path) -> None:
    """In a process of its own, because an audit hook stays."""
    script = (
        "import os, subprocess\nfrom pathlib import Path\nfrom tests.fuzz.watch import Watch\n"
        f"watch = Watch(Path({str(tmp_path / 'root')!r}))\n"
        f"for name in ('root/a', 'b'): open(os.path.join({str(tmp_path)!r}, name), 'w').close()\n"
        "subprocess.run(['true'])\nprint(len(watch.found), watch.found)\n"
    )
    (tmp_path / "root").mkdir()
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=os.environ)
    assert done.stdout.startswith("2 "), done.stdout + done.stderr
    assert f"{tmp_path}/b" in done.stdout
    assert "subprocess.Popen" in done.stdout
