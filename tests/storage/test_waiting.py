"""What else happens while a store waits for a disk: the process does not hang, and a signal shortens the wait."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from itertools import pairwise

import pytest

from fluxexp.interruption import interruption
from fluxexp.storage.patience import Patience, on_each_use
from tests.faults.shim import fill, small_disk
from tests.program import FAKE, Program

ARGUMENTS = (*FAKE, "dataset.limit=16", "dataset.height=256", "dataset.width=256")


def fail() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_each_use_of_a_store_says_that_the_process_works() -> None:
    """Rank 0 writes the files of thousands of runs at the end of a sweep, and does nothing else for long."""
    calls: list[str] = []
    patience = Patience("store", 100)
    with on_each_use(lambda: calls.append("used")):
        assert patience.writing("a", lambda: 1) == 1
        assert patience.reading("a", lambda: 2) == 2
    patience.writing("a", lambda: 3)
    assert calls == ["used", "used"]


def test_each_try_says_that_the_process_works() -> None:
    now_s, calls = [0.0], list[float]()
    patience = Patience("store", 100, clock=lambda: now_s[0], sleep=lambda s: now_s.append(now_s.pop() + s))
    with on_each_use(lambda: calls.append(now_s[0])), pytest.raises(OSError, match="No space"):
        patience.writing("a", fail)
    gaps = [after - before for before, after in pairwise(calls)]
    assert max(gaps) < 10.1
    assert calls[-1] >= 90
    num = len(calls)
    with pytest.raises(OSError, match="No space"):
        Patience("store", 1, clock=lambda: now_s[0], sleep=lambda s: now_s.append(now_s.pop() + s)).writing("a", fail)
    assert len(calls) == num, "outside of the context nothing is called"


@pytest.mark.parametrize(("signal_s", "most_s"), [(-1.0, 5.0), (50.0, 65.0)])
def test_after_an_interruption_it_repeats_for_seconds_only(
    monkeypatch: pytest.MonkeyPatch, signal_s: float, most_s: float
) -> None:
    now_s = [0.0]

    def sleep(seconds: float) -> None:
        now_s[0] += seconds
        if now_s[0] >= signal_s:
            monkeypatch.setattr(interruption, "requested", "SIGTERM")

    monkeypatch.setattr(interruption, "requested", "SIGTERM" if signal_s < 0 else None)
    with pytest.raises(OSError, match="No space"):
        Patience("store", 300, clock=lambda: now_s[0], sleep=sleep).writing("a", fail)
    assert now_s[0] <= most_s


@pytest.mark.slow
def test_a_rank_that_waits_for_a_full_disk_does_not_hang(program: Program) -> None:
    """The disk is full for longer than `parallelism.hung_after_s`."""
    with small_disk(program.cwd / "disk", kib=300) as disk:
        ballast = fill(disk, keep_kib=70)
        threading.Timer(20, ballast.unlink).start()
        options = (f"output.dir={disk}", "output.retry_s=60", "parallelism.hung_after_s=12")
        with program.start(*ARGUMENTS, *options) as process:
            _, errors = process.communicate(timeout=90)
        assert "No space left on device; trying again for 60 s" in errors
        assert process.returncode == 0, errors
        assert "It hangs, and ends" not in errors


@pytest.mark.slow
def test_a_signal_ends_the_wait_for_a_full_disk_before_a_launcher_kills(program: Program) -> None:
    with small_disk(program.cwd / "disk", kib=300) as disk:
        ballast = fill(disk, keep_kib=70)
        arguments = (*ARGUMENTS, f"output.dir={disk}")
        with program.start(*arguments) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if "trying again for 300 s" in line:
                    break
            process.send_signal(signal.SIGTERM)
            begun_s = time.monotonic()
            process.communicate(timeout=60)
        assert process.returncode == 75
        assert time.monotonic() - begun_s < 28
        ballast.unlink()
        code, _, errors = program.ended(arguments)
        assert code == 0, errors
