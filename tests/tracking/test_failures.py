import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from fluxexp.config.schema import TrackingConfig
from fluxexp.tracking import Tracker
from fluxexp.tracking.child import next_message

Wait = Callable[[Callable[[], bool]], None]
Summarize = Callable[[Path], dict[str, Any]]

# A rank that logs, waits until all messages are written, prints `ready`, and then hangs.
RANK = """
import sys, time
from pathlib import Path
from PIL import Image
from fluxexp.config.build import build
from fluxexp.config.schema import TrackingConfig
from fluxexp.tracking import SampleRow, Tracker

tracker = Tracker(build(TrackingConfig, dict(mode="offline", project="p", entity=None, group=None, tags=[], every_s=5.0,
                                       images=10, finish_timeout_s=60.0)))
tracker.start({}, Path(sys.argv[1]), run_id="base-1", name="base")
for step in range(20):
    tracker.log({"rank/0/images": step}, wall_s=float(step))
tracker.add_sample_row(SampleRow(key="k0", sample="s0", input=None, mask=None, result=Image.new("RGB", (64, 64)),
                                 truth=None, prompt="a cat", seed=7))
while tracker._child.pipe.num_dropped:
    time.sleep(0.01)
if sys.argv[2] == "finish":
    tracker.finish(0)
else:
    print("ready", flush=True)
    time.sleep(600)
"""


def run_fails(tracker: Tracker, run_dir: Path) -> str:
    """Track a complete run and return the error in its report."""
    tracker.start({}, run_dir, run_id="base-1", name="base")
    tracker.log({"rank/0/images": 1.0}, wall_s=1.0)
    tracker.summary({"num_images": 1})
    report = tracker.finish(0)
    assert (report.mode, report.directory) == (None, None)
    assert report.error is not None
    return report.error


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_rank_that_is_killed_leaves_a_readable_run(
    tmp_path: Path, read_run: Callable[[Path], Any], summarize_run: Summarize, wait_until: Wait, number: signal.Signals
) -> None:
    command = (sys.executable, "-c", RANK, str(tmp_path), "hang")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as rank:
        assert rank.stdout is not None
        assert rank.stdout.readline() == "ready\n"
        os.killpg(rank.pid, number)
    wait_until(lambda: bool(list(tmp_path.glob("wandb/offline-run-*/*.wandb"))))
    wait_until(lambda: any(record["type"] == "exit" for record in read_run(tmp_path)))
    items = [record["history"]["item"] for record in read_run(tmp_path) if record["type"] == "history"]
    assert [item["rank/0/images"] for item in items if "rank/0/images" in item] == list(range(20))
    summary = summarize_run(tmp_path)
    assert (summary["state"], summary["exit_code"]) == ("failed", 1)
    assert summary["summary"]["samples"]["nrows"] == 1


def test_wandb_prints_nothing_to_the_terminal(tmp_path: Path) -> None:
    command = (sys.executable, "-c", RANK, str(tmp_path), "finish")
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == ("", "")
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('half installed')", "half installed"),
        ("raise ImportError('no libc')", "no libc"),
        ("", "has no attribute"),
    ],
)
def test_a_broken_wandb_is_reported(
    tmp_path: Path, tracking: TrackingConfig, fake_wandb: Callable[[str], None], source: str, reason: str
) -> None:
    fake_wandb(source)
    error = run_fails(Tracker(tracking), tmp_path)
    assert "no W&B run" in error
    assert reason in error


def test_output_and_prompts_of_wandb_go_to_its_log(
    tmp_path: Path, tracking: TrackingConfig, fake_wandb: Callable[[str], None]
) -> None:
    fake_wandb(
        "import os; print('hello', os.path.samestat(os.fstat(0), os.stat(os.devnull)), flush=True);"
        "raise ImportError('no libc')"
    )
    assert run_fails(Tracker(tracking), tmp_path) == "no W&B run: ImportError: no libc"
    assert (tmp_path / "wandb" / "child.log").read_text() == "hello True\n"


INIT_FAILS = """
class Settings:
    def __init__(self, **_): pass
class Run: pass
def init(**_): raise OSError("no space left")
def teardown(**_): pass
"""


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_an_init_that_raises_is_reported(
    tmp_path: Path, tracking: TrackingConfig, fake_wandb: Callable[[str], None], mode: Any
) -> None:
    fake_wandb(INIT_FAILS)
    assert run_fails(Tracker(replace(tracking, mode=mode)), tmp_path) == "no W&B run: OSError: no space left"


def test_a_wandb_that_hangs_continues_alone(
    tmp_path: Path, tracking: TrackingConfig, fake_wandb: Callable[[str], None], wait_until: Wait
) -> None:
    fake_wandb("import time; time.sleep(600)")
    tracker = Tracker(replace(tracking, finish_timeout_s=1.0))
    error = run_fails(tracker, tmp_path)
    assert error == "W&B did not finish within 1 s (tracking.finish_timeout_s); it continues alone"
    pipe = tracker._child.pipe
    assert pipe is not None
    assert pipe._process.poll() is None
    os.kill(pipe._process.pid, signal.SIGKILL)
    assert pipe.wait(30) == -signal.SIGKILL


def test_a_run_directory_that_cannot_be_written_is_reported(tmp_path: Path, tracking: TrackingConfig) -> None:
    (tmp_path / "wandb").write_text("in the way")
    tracker = Tracker(tracking)
    assert "the W&B process could not be started" in run_fails(tracker, tmp_path)
    assert tracker.finish().dropped == 3


def test_a_child_that_dies_is_reported(tmp_path: Path, tracking: TrackingConfig) -> None:
    tracker = Tracker(tracking, command=(sys.executable, "-c", "raise SystemExit(7)"))
    assert run_fails(tracker, tmp_path) == "the W&B process ended with code 7 (see wandb/child.log)"


def test_the_report_counts_dropped_messages(tmp_path: Path, tracking: TrackingConfig) -> None:
    sleeping = (sys.executable, "-c", "import time; time.sleep(600)")
    tracker = Tracker(replace(tracking, finish_timeout_s=0.05), command=sleeping, queue_limit=10)
    tracker.start({}, tmp_path, run_id="base-1", name="base")
    for _ in range(5):
        tracker.summary({"text": "x" * 200_000})
    for step in range(1000):
        tracker.log({"rank/0/images": 1.0}, wall_s=float(step))
    assert 990 <= tracker.finish().dropped <= 1007
    assert tracker._child.pipe is not None
    tracker._child.pipe._process.kill()
    assert tracker._child.pipe.wait(30) == -signal.SIGKILL


def test_values_that_are_not_json_are_reported(tmp_path: Path, tracking: TrackingConfig) -> None:
    circular: dict[str, Any] = {}
    circular["self"] = circular
    tracker = Tracker(tracking, command=(sys.executable, "-c", "import sys; sys.stdin.read()"))
    tracker.start({}, tmp_path, run_id="base-1", name="base")
    tracker.summary(circular)
    report = tracker.finish()
    assert report.dropped == 1
    assert report.error is not None
    assert "the message 'summary' cannot be written as JSON" in report.error


def test_a_child_whose_parent_died_closes_the_run() -> None:
    inbox: SimpleQueue[dict[str, Any]] = SimpleQueue()
    inbox.put({"type": "log"})
    stranger = os.getpid()
    assert next_message(inbox, stranger, check_s=0.01) == {"type": "log"}
    assert next_message(inbox, stranger, check_s=0.01) == {"type": "finish", "exit_code": 1}


def test_a_child_waits_while_its_parent_lives() -> None:
    class Inbox(SimpleQueue[dict[str, Any]]):
        waits = 0

        def get(self, block: bool = True, timeout: float | None = None) -> dict[str, Any]:
            self.waits += 1
            if self.waits == 3:
                self.put({"type": "log"})
            return super().get(block, timeout)

    inbox = Inbox()
    assert next_message(inbox, os.getppid(), check_s=0.01) == {"type": "log"}
    assert inbox.waits == 3


def test_an_incomplete_last_line_and_an_unknown_message_do_no_harm(tmp_path: Path, summarize_run: Summarize) -> None:
    start = {
        **{
            "type": "start",
            "config": {},
            "dir": str(tmp_path),
            "run_dir": str(tmp_path),
            "run_id": "base-1",
            "name": "base",
            "group": None,
            "job_type": "run",
        },
        **{
            "project": "p",
            "entity": None,
            "tags": [],
            "mode": "offline",
            "images": 4,
            "init_timeout_s": 10,
            "server_check_s": 10,
        },
        **{"argv": ["x"], "pid": os.getpid()},
    }
    lines = [json.dumps(start), '{"type":"nonsense"}', '{"type":"log","values":{"a":1}}', '{"type":"log","val']
    done = subprocess.run(
        (sys.executable, "-m", "fluxexp.tracking.child"),
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=60,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["type"] for answer in answers] == ["started", "error"]
    assert "unknown message: nonsense" in answers[1]["text"]
    summary = summarize_run(tmp_path)
    assert (summary["summary"]["a"], summary["exit_code"]) == (1, 1)


def test_a_child_that_dies_between_runs_is_replaced(
    tmp_path: Path, tracking: TrackingConfig, summarize_run: Summarize
) -> None:
    tracker = Tracker(tracking)
    tracker.start({}, tmp_path / "0", run_id="id-0", name="base")
    pipe = tracker._child.pipe
    assert pipe is not None
    os.kill(pipe._process.pid, signal.SIGKILL)
    report = tracker.finish(0, more=True)
    assert report.error == "the W&B process ended with code -9 (see wandb/child.log)"
    tracker.start({}, tmp_path / "1", run_id="id-1", name="base")
    report = tracker.finish(0, more=True)
    tracker.close()
    assert (report.run_id, report.error, report.dropped) == ("id-1", None, 0)
    assert summarize_run(tmp_path / "1")["exit_code"] == 0


def test_a_child_that_hangs_is_replaced_for_the_next_run(tmp_path: Path, tracking: TrackingConfig) -> None:
    answer = json.dumps({"type": "started", "mode": "offline", "run_id": "old", "dir": None, "url": None})
    sleeping = (sys.executable, "-c", f"import time; time.sleep(1); print({answer!r}, flush=True); time.sleep(600)")
    tracker = Tracker(replace(tracking, finish_timeout_s=0.3), command=sleeping)
    pipes = []
    for number in range(2):
        tracker.start({}, tmp_path / str(number), run_id=f"id-{number}", name="base")
        pipes.append(tracker._child.pipe)
        report = tracker.finish(0, more=True)
        assert report.error == "W&B did not finish within 0.3 s (tracking.finish_timeout_s); it continues alone"
        assert report.run_id is None
    assert pipes[0] is not pipes[1]
    for pipe in pipes:
        assert pipe is not None
        pipe._process.kill()
        assert pipe.wait(30) == -signal.SIGKILL
