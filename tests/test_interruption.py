"""The signals of a process, in small real processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

HEAD = """
import os, signal, sys, time
from fluxexp.interruption import Interrupted, interruption
interruption.listen()
me = os.getpid()
"""


def run(body: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", HEAD + body], capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"])
def test_a_signal_raises_where_nothing_defers_it(name: str) -> None:
    done = run(f"""
try:
    os.kill(me, signal.{name})
    time.sleep(10)
except Interrupted as error:
    print(error, interruption.requested)
""")
    assert done.stdout.split() == [name, name], done.stderr


def test_deferred_code_sees_the_request_and_its_raising_parts_end() -> None:
    done = run("""
with interruption.deferred():
    os.kill(me, signal.SIGTERM)
    print("goes on", interruption.requested)
    try:
        with interruption.raising():
            print("never")
    except Interrupted:
        print("raised")
""")
    assert done.stdout.splitlines() == ["goes on SIGTERM", "raised"], done.stderr


def test_a_raising_part_is_interrupted_by_another_thread() -> None:
    done = run("""
import threading
with interruption.deferred():
    try:
        with interruption.raising():
            threading.Timer(0.1, interruption.request, ["SIGTERM on another rank"]).start()
            for _ in range(1000):
                time.sleep(0.01)
    except Interrupted:
        print(interruption.requested)
""")
    assert done.stdout.strip() == "SIGTERM on another rank", done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_even_inside_a_call_of_a_library(number: signal.Signals) -> None:
    body = """
import hashlib
with interruption.deferred():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 200_000_000)
"""
    with subprocess.Popen([sys.executable, "-c", HEAD + body], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR1)
        time.sleep(1.1)
        process.send_signal(signal.SIGUSR1)  # a warning never ends it
        time.sleep(0.1)
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(timeout=10) == 128 + number


def test_a_signal_that_a_launcher_repeats_at_once_is_one_request() -> None:
    done = run("""
with interruption.deferred():
    os.kill(me, signal.SIGINT)
    time.sleep(0.2)
    os.kill(me, signal.SIGINT)
    time.sleep(0.2)
    print("goes on")
""")
    assert (done.returncode, done.stdout) == (0, "goes on\n")
