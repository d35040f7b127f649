"""Which ranks are lost, with threads as ranks and short limits."""

from __future__ import annotations

import time

import pytest

from fluxexp.errors import LostRankError
from fluxexp.parallel import liveness as module
from fluxexp.parallel.channel import Channel
from fluxexp.parallel.coordinator import LocalCoordinator
from fluxexp.parallel.liveness import Liveness, LivenessLimits, unwatched

LIMITS = LivenessLimits(lost_after_s=0.3, hung_after_s=1.0)


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EVERY_S", 0.02)


def pair(limits: LivenessLimits = LIMITS) -> tuple[Liveness, Liveness]:
    """The liveness of rank 0, and of rank 1 without its thread, so that the test sends its life signs."""
    zero, one = (Liveness(coordinator, limits) for coordinator in LocalCoordinator.group(2))
    return zero, one


def lives(liveness: Liveness, seconds: float, observer: Liveness, *, works: bool) -> dict[int, str]:
    """Send life signs for some seconds. Returns what the observer says at the end."""
    end_s = time.monotonic() + seconds
    lost: dict[int, str] = {}
    while time.monotonic() < end_s:
        if works:
            liveness.touch()
        liveness._publish()
        lost = observer.lost((0, 1))
        time.sleep(0.01)
    return lost


def watched(observer: Liveness, seconds: float) -> dict[int, str]:
    """What the observer says after it has watched rank 1 for some seconds."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        observer.lost((1,))
        time.sleep(0.01)
    return observer.lost((1,))


def test_a_rank_with_heartbeat_and_progress_is_not_lost() -> None:
    zero, one = pair()
    assert lives(one, 1.3, zero, works=True) == {}


def test_a_rank_without_a_heartbeat_is_lost() -> None:
    zero, one = pair()
    lives(one, 0.1, zero, works=True)
    assert zero.lost((1,)) == {}
    reason = watched(zero, 0.5)[1]
    assert "no heartbeat for" in reason
    assert "(parallelism.lost_after_s=0.3)" in reason


def test_a_rank_that_never_sends_a_heartbeat_is_lost() -> None:
    zero, _ = pair()
    assert zero.lost((1,)) == {}
    assert 1 in watched(zero, 0.4)


def test_a_rank_with_a_heartbeat_but_no_progress_is_lost() -> None:
    zero, one = pair()
    assert lives(one, 0.8, zero, works=False) == {}
    assert "it has a heartbeat, but made no progress" in lives(one, 0.5, zero, works=False)[1]


def test_a_pause_of_the_observer_loses_nobody() -> None:
    """The observer was suspended, and the other rank was not."""
    zero, one = pair()
    assert lives(one, 0.1, zero, works=True) == {}
    time.sleep(0.5)
    one.touch()
    one._publish()
    assert zero.lost((1,)) == {}


def test_without_limits_no_rank_is_lost() -> None:
    zero, one = pair(LivenessLimits(None, None))
    one._publish()
    assert zero.lost((1,)) == {}
    time.sleep(0.2)
    assert zero.lost((1,)) == {}
    assert unwatched().lost((0, 1)) == {}


def test_a_rank_that_has_left_is_lost_at_once_but_its_last_message_counts() -> None:
    zero, one = pair()
    coordinators = LocalCoordinator.group(2)
    channel = Channel("result", str)
    channel.publish_own(coordinators[1], "done")
    one.leave()
    assert channel.at(1).wait(coordinators[0], zero.expect(1)) == "done"
    with pytest.raises(LostRankError, match="rank 1 is lost: its process has ended"):
        Channel("scores", str).at(1).wait(coordinators[0], zero.expect(1))


def test_a_message_that_arrives_between_the_last_look_and_the_verdict_counts() -> None:
    coordinators = LocalCoordinator.group(2)
    channel = Channel("result", str)

    def check() -> None:
        channel.publish_own(coordinators[1], "done")
        raise LostRankError("rank 1 is lost: its process has ended")

    assert channel.at(1).wait(coordinators[0], check) == "done"


def test_a_rank_that_was_taken_for_lost_learns_why() -> None:
    zero, one = pair(LivenessLimits(None, None))
    one.start()
    zero.declare_lost(1, "no heartbeat for 130 s")
    deadline_s = time.monotonic() + 5
    while one.taken_for_lost is None and time.monotonic() < deadline_s:
        time.sleep(0.01)
    one.leave()
    assert one.taken_for_lost == "no heartbeat for 130 s"


def test_two_callers_that_judge_different_ranks_do_not_make_each_other_blind() -> None:
    """Rank 0 waits for rank 1, while its display looks at both: rank 2 is looked at less often, but not lost."""
    zero, one, two = (Liveness(coordinator, LIMITS) for coordinator in LocalCoordinator.group(3))
    assert zero.lost((1, 2)) == {}
    end_s = time.monotonic() + 0.6
    while time.monotonic() < end_s:
        for liveness in (one, two):
            liveness.touch()
            liveness._publish()
        assert zero.lost((1,)) == {}
        assert zero.lost((1, 2)) == {}
        time.sleep(0.01)
    assert zero.lost((2,)) == {}
    assert lives(two, 0.1, zero, works=True) == {}


def test_ranks_that_were_all_suspended_are_not_lost() -> None:
    """A scheduler stops all processes of a job, and continues them: the observer can look before the others beat."""
    zero, one = pair()
    assert lives(one, 0.1, zero, works=True) == {}
    assert watched(zero, 0.05) == {}  # sees the last heartbeat
    time.sleep(1.2)
    assert zero.lost((1,)) == {}
    assert lives(one, 0.2, zero, works=True) == {}
