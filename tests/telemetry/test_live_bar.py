"""The bars of phases on a real pseudo-terminal, and the plain lines without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.telemetry.screen import run_on_terminal, screen_of

WORK = """
import sys
from fluxexp.telemetry import Phase, say
say("tasks      8")
with Phase("loading", "model tiny"):
    pass
with Phase("generating", "images", 8) as phase:
    for done in range(8):
        phase.update(done, failed=done > 4, per_s=3.14)
        if done == 2:
            say("rank 1 is lost: " + "x" * 120, urgent=True)
        if done == 3:
            print("a warning of a library", file=sys.stderr)
    phase.update(7, failed=1, per_s=3.14)
say("complete")
"""


def test_each_phase_is_one_line_and_messages_are_above_it() -> None:
    text = run_on_terminal(WORK)
    lost, library = "rank 1 is lost: " + "x" * 120, "a warning of a library"
    lines = screen_of(text)
    assert lines[0] == "tasks      8"
    assert lines[1].startswith("loading    ")
    assert lines[1].endswith("model tiny 0:00:00")
    assert lines[2] + lines[3] == lost, "the terminal wraps the line; no line break is in it"
    assert lost in text
    assert lines[4] == library
    assert lines[5].startswith("generating ━━━━━━━━━━━━━━━━━━━━━━━━ 7/8 images · 3.1 images/s · 1 failed 0:00:0")
    assert lines[6:] == ["complete"]


@pytest.mark.parametrize("columns", [20, 40, 60])
def test_no_line_wraps_on_a_narrow_terminal(columns: int) -> None:
    code = WORK.replace('"x" * 120', '""').replace("a warning of a library", "a warning")
    lines = screen_of(run_on_terminal(code, columns=columns), columns)
    assert [line.split()[0] for line in lines] == ["tasks", "loading", "rank", "a", "generating", "complete"]
    assert "━" not in "".join(lines)


def test_the_cursor_stays_visible() -> None:
    assert "\x1b[?25l" not in run_on_terminal(WORK), "a process that is killed could not show it again"


def test_no_color_is_respected() -> None:
    assert "\x1b[38" in run_on_terminal(WORK)
    assert "\x1b[38" not in run_on_terminal(WORK, environment={"NO_COLOR": "1"})


def test_a_terminal_that_cannot_rewrite_gets_plain_lines() -> None:
    text = run_on_terminal(WORK, environment={"TERM": "dumb"})
    assert "\x1b" not in text
    assert "generating 8 images\r\n" in text


def test_errors_go_to_their_file(tmp_path: Path) -> None:
    """`2>errors.log` must have the errors, although bars are on the terminal."""
    errors = tmp_path / "errors.log"
    text = run_on_terminal(WORK, errors=errors)
    assert "rank 1 is lost" not in text
    assert errors.read_text().splitlines() == ["rank 1 is lost: " + "x" * 120, "a warning of a library"]


def test_a_terminal_without_unicode_gets_ascii() -> None:
    text = run_on_terminal(WORK, environment={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert text.isascii()
    assert "7/8 images - 3.1 images/s - 1 failed" in text


def test_a_closed_terminal_does_not_stop_the_run() -> None:
    code = """
import io, sys
from fluxexp.telemetry import Phase, say
class Closed(io.StringIO):
    def write(self, text): raise BrokenPipeError
    def isatty(self): return True
terminal, sys.stdout = sys.stdout, Closed()
with Phase("generating", "images", 8) as phase:
    phase.update(3)
    say("a message")
sys.stdout = terminal
print("still here")
"""
    assert screen_of(run_on_terminal(code)) == ["still here"]
