from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import pytest
from torch.distributed import HashStore, TCPStore  # type: ignore[attr-defined]

from fluxexp.errors import RankError
from fluxexp.parallel.channel import Channel
from fluxexp.parallel.coordinator import Coordinator, LocalCoordinator
from fluxexp.parallel.tcp_coordinator import TCPStoreCoordinator


@dataclass(frozen=True)
class Inner:
    size: int


@dataclass(frozen=True)
class Outer:
    name: str
    parts: tuple[Inner, ...] = ()
    seconds: float | None = None


class Signal(StrEnum):
    GO = "go"
    STOP = "stop"


@dataclass(frozen=True)
class Nested:
    inner: Inner
    signal: Signal
    by_name: Mapping[str, Inner] = field(default_factory=dict)
    seconds: Mapping[str, float] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


OUTER = Channel("outer", Outer)
TEXT = Channel("text", str)
NESTED = Channel("nested", Nested)
SIGNAL = Channel("signal", Signal)
Group = Callable[[int], Sequence[Coordinator]]


def over_torch_store(world_size: int) -> list[TCPStoreCoordinator]:
    store = HashStore()
    return [TCPStoreCoordinator(store, "0", rank, world_size) for rank in range(world_size)]


@pytest.fixture(params=[LocalCoordinator.group, over_torch_store])
def group(request: pytest.FixtureRequest) -> Group:
    made: Group = request.param
    return made


def test_values_are_read_by_other_ranks_and_deleted(group: Group) -> None:
    zero, one = group(2)
    assert one.get("plan") is None
    zero.put("plan", {"tasks": [1, 2], "name": "fürs Erste"})
    assert one.get("plan") == {"tasks": [1, 2], "name": "fürs Erste"}
    one.delete("plan")
    one.delete("plan")
    assert zero.get("plan") is None


def test_counters_are_atomic_and_read_together_with_values(group: Group) -> None:
    ranks = group(4)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: ranks[number % 4].add("counter", 1), range(200)))
    ranks[0].put("pace", None)
    assert ranks[3].get_many(["counter", "pace"]) == [200, None]


def test_parts_do_not_share_keys(group: Group) -> None:
    (whole,) = group(1)
    part, other = whole.part("a", 1, 2), whole.part("b", 0, 1)
    part.put("key", 1)
    assert (part.rank, part.world_size) == (1, 2)
    assert whole.get("key") is None
    assert other.get("key") is None
    assert whole.part("a", 0, 2).get("key") == 1


def test_typed_messages_are_read_as_they_were_published(group: Group) -> None:
    zero, one = group(2)
    assert OUTER.read(one) is None
    for message in (Outer("x"), Outer("y", (Inner(1), Inner(2)), 0.5)):
        OUTER.publish(zero, message)
        assert OUTER.read(one) == message
    OUTER.delete(one)
    assert OUTER.read(zero) is None


def test_nested_records_mappings_and_enums_are_read_as_they_were_published(group: Group) -> None:
    zero, one = group(2)
    for message in (
        Nested(Inner(1), Signal.GO),
        Nested(Inner(1), Signal.STOP, {"a": Inner(2)}, {"load": 0.5}, {"model": {"name": None}, "sizes": [1, 2]}),
    ):
        NESTED.publish(zero, message)
        assert NESTED.read(one) == message
    SIGNAL.publish(zero, Signal.STOP)
    assert SIGNAL.read(one) is Signal.STOP


def test_wait_all_returns_when_every_rank_has_published(group: Group) -> None:
    zero, one = group(2)
    TEXT.publish_own(zero, "mine")
    assert TEXT.read_all(zero) == {0: "mine"}
    threading.Timer(0.1, lambda: TEXT.publish_own(one, "theirs")).start()
    assert TEXT.wait_all(zero) == {0: "mine", 1: "theirs"}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"name": "x", "parts": []}, "missing fields ['seconds'], unknown fields []"),
        ({"name": "x", "parts": [], "seconds": None, "new": 1}, "unknown fields ['new']"),
        ({"name": 1, "parts": [], "seconds": None}, "'outer.name' of another rank must be of type str, but is 1"),
        ({"name": "x", "parts": [{"size": "1"}], "seconds": None}, "'outer.parts[0].size'"),
        ({"name": "x", "parts": [], "seconds": "soon"}, "'outer.seconds' of another rank must be of type float"),
        ("x", "must be a Outer"),
    ],
)
def test_a_message_of_the_wrong_shape_is_an_error(value: object, words: str) -> None:
    coordinator = LocalCoordinator()
    coordinator.put("outer", value)
    with pytest.raises(RankError) as raised:
        OUTER.read(coordinator)
    assert words in str(raised.value)
    assert "same version of fluxexp" in str(raised.value)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("inner", {"size": None}, "'nested.inner.size' of another rank must be of type int, but is None"),
        ("inner", None, "'nested.inner' of another rank must be a Inner"),
        ("signal", "pause", "'nested.signal' of another rank must be one of ['go', 'stop'], but is 'pause'"),
        ("signal", 1, "'nested.signal'"),
        ("by_name", {"a": {"size": 1, "new": 1}}, "'nested.by_name[a]' of another rank is not a Inner"),
        ("by_name", [], "'nested.by_name' of another rank must be a mapping"),
        ("seconds", {"load": "soon"}, "'nested.seconds[load]' of another rank must be of type float"),
    ],
)
def test_a_nested_value_of_the_wrong_shape_is_named(field: str, value: object, words: str) -> None:
    coordinator = LocalCoordinator()
    right = {"inner": {"size": 1}, "signal": "go", "by_name": {}, "seconds": None, "config": {}}
    coordinator.put("nested", right | {field: value})
    with pytest.raises(RankError) as raised:
        NESTED.read(coordinator)
    assert words in str(raised.value)


def test_a_single_process_has_no_process_group() -> None:
    with pytest.raises(RankError, match="several processes"):
        LocalCoordinator().group_store()


def test_values_above_the_limit_of_a_tcp_store_are_read_whole_and_deleted_whole() -> None:
    """A TCPStore refuses 8 MiB and more, and drops the connection."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    coordinator = TCPStoreCoordinator(store, "0", 0, 1)
    num_keys = store.num_keys()
    large = {"attempts": {f"task-{number}": "ü" for number in range(350_000)}}
    coordinator.put("plan", large)
    assert coordinator.get("plan") == large
    assert store.num_keys() > num_keys + 1
    coordinator.put("plan", "small")
    assert coordinator.get("plan") == "small"
    coordinator.put("plan", large)
    coordinator.delete("plan")
    assert coordinator.get("plan") is None
