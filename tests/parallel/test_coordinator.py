from __future__ import annotations

import threading

from fluxexp.parallel.coordinator import Coordinator, connect


def test_what_one_rank_publishes_the_others_read() -> None:
    store = connect(1)
    zero, one = (Coordinator(store, "run", rank, 2) for rank in (0, 1))
    assert zero.read("plan") is None
    zero.publish("plan", {"tasks": [1, 2], "name": "fürs Erste"})
    assert one.read("plan") == {"tasks": [1, 2], "name": "fürs Erste"}


def test_waiting_ends_when_the_last_rank_has_spoken() -> None:
    store = connect(1)
    zero, one = (Coordinator(store, "run", rank, 2) for rank in (0, 1))
    zero.publish_own("result", "mine")
    assert zero.read_all("result") == {0: "mine"}
    threading.Timer(0.1, one.publish_own, ("result", "theirs")).start()
    assert zero.wait_all("result") == {0: "mine", 1: "theirs"}


def test_runs_of_a_sweep_never_hear_each_other() -> None:
    store = connect(1)
    Coordinator(store, "0", 0, 1).publish("plan", "of the first")
    assert Coordinator(store, "1", 0, 1).read("plan") is None
