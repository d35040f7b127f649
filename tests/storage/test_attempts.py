"""The attempt log, and the deaths that it explains. Processes die for real."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fluxexp.storage.attempts import AttemptLog, WorkerProcess
from fluxexp.storage.local_store import LocalStore
from fluxexp.storage.process_deaths import DeathRegister
from fluxexp.storage.result_files import ATTEMPTS, PROCESS_DEATHS
from fluxexp.storage.run_store import RunStore
from tests.storage.memory_store import MemoryStore

WORK = """
import ctypes, os, signal, sys
from pathlib import Path
from fluxexp.storage.attempts import AttemptLog, WorkerProcess
from fluxexp.storage.local_store import LocalStore
log = AttemptLog(LocalStore(Path(sys.argv[1])), WorkerProcess.current("session", 3))
log.begin(["a", "b", "c"])
log.end("a")
log.begin(["c", "d"])
{end}
"""


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> RunStore:
    return LocalStore(tmp_path) if request.param == "local" else MemoryStore()


def log_of(store: RunStore, rank: int = 0, session: str = "session") -> AttemptLog:
    return AttemptLog(store, WorkerProcess.current(session, rank))


def deaths(store: RunStore) -> dict[str, int]:
    return {key: len(found) for key, found in DeathRegister(store).count().items()}


@pytest.mark.parametrize(
    ("end", "code", "blamed"),
    [
        ("ctypes.string_at(0)", -signal.SIGSEGV, {"b": 1, "c": 1, "d": 1}),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, {"b": 1, "c": 1, "d": 1}),
        ("os._exit(1)", 1, {"b": 1, "c": 1, "d": 1}),
        ("log.stop(); os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, {}),
        ("log.close()", 0, {}),
    ],
)
def test_a_dead_process_is_explained_by_the_tasks_that_it_worked_on(
    tmp_path: Path, end: str, code: int, blamed: dict[str, int]
) -> None:
    done = subprocess.run([sys.executable, "-c", WORK.format(end=end), str(tmp_path)], check=False)
    assert done.returncode == code
    store = LocalStore(tmp_path)
    found = DeathRegister(store).count()
    assert {key: len(own) for key, own in found.items()} == blamed
    assert {(death.rank, death.pid > 0) for own in found.values() for death in own} <= {(3, True)}
    assert deaths(store) == blamed, "each death counts once"
    assert not list(store.list(ATTEMPTS)), "what is counted is deleted"


def test_deaths_add_up(store: RunStore) -> None:
    for keys in (["a", "b"], ["b"], ["b", "c"]):
        log_of(store).begin(keys)
        deaths(store)
    assert deaths(store) == {"a": 1, "b": 3, "c": 1}


def test_ranks_of_a_replica_that_die_together_are_one_death_of_their_task(store: RunStore) -> None:
    for rank, session in ((0, "one"), (1, "one"), (0, "two")):
        log_of(store, rank, session).begin(["a"])
    log_of(store, 1, "one").begin(["b"])
    assert deaths(store) == {"a": 2, "b": 1}


def test_a_task_is_begun_once_and_one_line_has_all_new_tasks(store: RunStore) -> None:
    log = log_of(store)
    for keys in (["a", "b"], ["b", "a"], ["b", "c"]):
        log.begin(keys)
    (stream,) = store.list(ATTEMPTS)
    assert [json.loads(line)["begin"] for line in store.records(stream)] == [["a", "b"], ["c"]]


def test_a_process_that_was_asked_to_stop_before_its_first_task_is_not_blamed(store: RunStore) -> None:
    log = log_of(store)
    log.stop()
    log.begin(["a"])
    assert deaths(store) == {}


def test_during_a_session_only_lost_ranks_are_counted(store: RunStore) -> None:
    lost, alive, earlier = log_of(store, 0), log_of(store, 1), log_of(store, 0, "earlier")
    for name, log in (("lost", lost), ("alive", alive), ("earlier", earlier)):
        log.begin([name])
    assert list(DeathRegister(store).count(session="session", ranks=[0])) == ["lost"]
    alive.close()
    assert sorted(deaths(store)) == ["earlier", "lost"]


def test_a_register_that_is_written_but_whose_streams_remain_counts_nothing_twice(store: RunStore) -> None:
    """Rank 0 was killed between the two."""
    log_of(store).begin(["a"])
    (stream,) = store.list(ATTEMPTS)
    lines = store.records(stream)
    assert deaths(store) == {"a": 1}
    register = json.loads(store.get(PROCESS_DEATHS) or b"")
    assert register["streams"] == [stream]
    for line in lines:
        store.append_record(stream, line)
    assert deaths(store) == {"a": 1}


def test_damaged_lines_and_a_damaged_register_are_left_out(store: RunStore) -> None:
    store.put(PROCESS_DEATHS, b"[1, 2")
    log = log_of(store)
    log.begin(["a"])
    (stream,) = store.list(ATTEMPTS)
    for line in (b"\xff{", b"[]", b'{"begin": [1, null, "b"], "at_s": "x"}', b'{"begin": 3}'):
        store.append_record(stream, line)
    store.append_record(f"{ATTEMPTS}other.jsonl", b'{"process": {"rank": 1}}')
    assert deaths(store) == {"a": 1, "b": 1}


@pytest.mark.parametrize(
    "death",
    [
        '{"host": "h", "pid": Infinity, "rank": 0, "begun_s": 1}',
        '{"host": "h", "pid": 1, "rank": 0, "begun_s": 1e300}',
        '{"host": "h", "pid": 1, "rank": 0, "begun_s": NaN}',
        '{"host": "\\ud800", "pid": 1, "rank": 0, "begun_s": 1}',
        "[" * 100_000,
    ],
)
def test_a_register_of_any_content_is_read_and_its_deaths_have_a_time(store: RunStore, death: str) -> None:
    store.put(PROCESS_DEATHS, f'{{"tasks": {{"a": [{death}]}}, "streams": []}}'.encode())
    log_of(store).begin(["b"])
    store.append_record(f"{ATTEMPTS}deep.jsonl", b"[" * 100_000)
    store.append_record(
        f"{ATTEMPTS}odd.jsonl",
        b'{"process": {"session": "s", "rank": 0, "host": "\\ud800", "pid": 1}, "begin": ["c"], "at_s": 1e300}',
    )
    log_of(store).begin(["d"])
    store.append_record(
        f"{ATTEMPTS}key.jsonl",
        b'{"process": {"session": "t", "rank": 0, "host": "h", "pid": 1}, "begin": ["e", "\\ud800"], "at_s": 1}',
    )
    found = DeathRegister(store).count()
    assert (len(found["b"]), len(found["e"])) == (1, 1)
    for own in found.values():
        assert all(time.gmtime(death.begun_s) and death.host.encode() for death in own)


def test_tasks_that_were_made_are_forgotten(store: RunStore) -> None:
    log_of(store).begin(["a", "b"])
    register = DeathRegister(store)
    register.forget(register.count(), ["a"])
    assert deaths(store) == {"b": 1}
