import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fluxexp.tracking.line_pipe import LinePipe

COUNT_LINES = """
import json, os, sys, time
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
print(json.dumps({"lines": [line.strip()[:20] for line in sys.stdin]}))
"""


@contextmanager
def open_pipe(program: str, tmp_path: Path, queue_limit: int = 100) -> Iterator[tuple[LinePipe, list[Any], list[str]]]:
    answers: list[Any] = []
    errors: list[str] = []
    pipe = LinePipe(
        (sys.executable, "-c", program, str(tmp_path / "go")),
        log=tmp_path / "log" / "child.log",
        environ=os.environ,
        queue_limit=queue_limit,
        on_answer=answers.append,
        on_error=errors.append,
    )
    try:
        yield pipe, answers, errors
    finally:
        (tmp_path / "go").touch()
        pipe.close("end")
        assert pipe.wait(30) is not None


def test_lines_go_in_and_answers_come_out(tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    with open_pipe(COUNT_LINES, tmp_path) as (pipe, answers, errors):
        pipe.send("one")
        pipe.send(lambda: "two")
        pipe.close("end")
        assert pipe.wait(30) == 0
        assert answers == [{"lines": ["one", "two", "end"]}]
        assert (errors, pipe.num_dropped) == ([], 0)


def test_a_full_queue_drops_and_counts(tmp_path: Path) -> None:
    with open_pipe(COUNT_LINES, tmp_path, queue_limit=3) as (pipe, answers, _):
        for _index in range(50):
            pipe.send("x" * 200_000)  # more than a pipe holds, so the writer blocks at the first line
        (tmp_path / "go").touch()
        pipe.close("end")
        assert pipe.wait(30) == 0
        received = len(answers[0]["lines"])
        assert answers[0]["lines"][-1] == "end"
        assert received <= 5 + 1
        assert pipe.num_dropped == 51 - received


def test_a_process_that_never_reads_blocks_nothing(tmp_path: Path) -> None:
    with open_pipe(COUNT_LINES, tmp_path) as (pipe, _, _errors):
        for _index in range(10):
            pipe.send("x" * 200_000)
        pipe.close("end")
        assert pipe.wait(0.05) is None
        assert pipe.num_dropped == 11


def test_a_process_that_ends_early_has_an_exit_code(
    tmp_path: Path, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    with open_pipe("raise SystemExit(3)", tmp_path) as (pipe, _, errors):
        assert pipe.wait(30) == 3
        pipe.send("late")
        pipe.send("later")
        pipe.close("end")
        assert pipe.num_dropped == 3
        assert errors == []


def test_a_line_that_cannot_be_made_is_an_error_and_the_next_is_sent(tmp_path: Path) -> None:
    def fail() -> str:
        raise FileNotFoundError("no such image")

    (tmp_path / "go").touch()
    with open_pipe(COUNT_LINES, tmp_path) as (pipe, answers, errors):
        pipe.send(fail)
        pipe.send("next")
        pipe.close("end")
        assert pipe.wait(30) == 0
        assert errors == ["FileNotFoundError: no such image"]
        assert answers == [{"lines": ["next", "end"]}]
        assert pipe.num_dropped == 1


def test_answers_that_are_not_json_are_errors(tmp_path: Path) -> None:
    with open_pipe("print('hello'); print('{}')", tmp_path) as (pipe, answers, errors):
        assert pipe.wait(30) == 0
        assert answers == [{}]
        assert len(errors) == 1
        assert "hello" in errors[0]


def test_stderr_goes_to_the_log_and_the_process_has_its_own_session(tmp_path: Path) -> None:
    program = "import os, sys; print(os.getsid(0) == os.getpid(), file=sys.stderr)"
    with open_pipe(program, tmp_path) as (pipe, _, _errors):
        assert pipe.wait(30) == 0
        assert (tmp_path / "log" / "child.log").read_text() == "True\n"


def test_send_returns_at_once(tmp_path: Path) -> None:
    with open_pipe(COUNT_LINES, tmp_path, queue_limit=5) as (pipe, _, _errors):
        started_s = time.monotonic()
        for _index in range(1000):
            pipe.send("x" * 200_000)
        assert time.monotonic() - started_s < 10
