"""Typed messages between ranks. A `Channel` is a key of the coordinator together with the type of its messages.

A message is a frozen dataclass, a `StrEnum` or a plain JSON value. Fields of a dataclass may also be dataclasses, and
tuples or mappings of such values. This module is the only one that turns messages into JSON and back. It checks fields
and types when a message is read.
"""

from __future__ import annotations

import dataclasses
import time
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

from fluxexp.errors import LostRankError, RankError
from fluxexp.parallel.coordinator import Coordinator

M = TypeVar("M")
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Channel(Generic[M]):
    """A key of the coordinator, and the type of what ranks publish there."""

    name: str
    kind: type[M]

    def at(self, part: int | str) -> Channel[M]:
        """The channel of this type below this one, such as one for each batch."""
        return Channel(f"{self.name}/{part}", self.kind)

    def publish(self, coordinator: Coordinator, message: M) -> None:
        """Set the message for every rank to read."""
        coordinator.put(self.name, encode(message))

    def read(self, coordinator: Coordinator) -> M | None:
        """The message; None if no rank has published one. Does not wait.

        Raises:
            RankError: the store is lost, or the message lacks a field or has one of a wrong type.
        """
        value = coordinator.get(self.name)
        return None if value is None else decode(self.kind, value, self.name)

    def wait(self, coordinator: Coordinator, check: Callable[[], None] = lambda: None) -> M:
        """The message, once a rank has published it. Polls without a deadline, because load may be uneven.

        Args:
            coordinator: of the ranks.
            check: called between polls; `Liveness.expect` makes one that raises LostRankError.

        Raises:
            LostRankError: the rank that should publish the message is lost.
        """
        while (message := self.read(coordinator)) is None:
            try:
                check()
            except LostRankError:
                # A rank publishes its last message, and then ends.
                if (message := self.read(coordinator)) is not None:
                    return message
                raise
            time.sleep(_POLL_S)
        return message

    def delete(self, coordinator: Coordinator) -> None:
        """Remove the message if there is one."""
        coordinator.delete(self.name)

    def publish_own(self, coordinator: Coordinator, message: M) -> None:
        """Publish this rank's own message. Every rank has one."""
        self.at(coordinator.rank).publish(coordinator, message)

    def read_all(self, coordinator: Coordinator) -> dict[int, M]:
        """The messages of the ranks that have published their own, by rank. Does not wait."""
        messages = {rank: self.at(rank).read(coordinator) for rank in range(coordinator.world_size)}
        return {rank: message for rank, message in messages.items() if message is not None}

    def wait_all(
        self, coordinator: Coordinator, expect: Callable[[int], Callable[[], None]] = lambda _: lambda: None
    ) -> dict[int, M]:
        """The messages of all ranks, once each rank has published its own. `expect` makes the check for a rank.

        Raises:
            LostRankError: a rank that has not published its message is lost.
        """
        return {rank: self.at(rank).wait(coordinator, expect(rank)) for rank in range(coordinator.world_size)}


def encode(message: Any) -> Any:
    """A message as a JSON value: dataclasses become mappings. A `StrEnum` is a JSON string already."""
    return dataclasses.asdict(message) if dataclasses.is_dataclass(message) else message  # type: ignore[arg-type]


def decode(kind: Any, value: Any, path: str) -> Any:
    """The message of type `kind` that `encode` made `value` of.

    Args:
        kind: a dataclass, a `StrEnum`, a JSON type, `tuple[X, ...]`, `Mapping[str, X]`, or an optional one of these.
            `Any` is not checked.
        value: from JSON.
        path: names the value in errors.

    Raises:
        RankError: a field is missing, unknown or of a wrong type.
    """
    if kind is Any:
        return value
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in parts:
            return None
        (kind,) = (part for part in parts if part is not type(None))
        return decode(kind, value, path)
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, path)
    if origin is tuple:
        _expect(isinstance(value, list), path, "a list", value)
        return tuple(decode(parts[0], item, f"{path}[{index}]") for index, item in enumerate(value))
    if origin is not None or kind is dict:
        _expect(isinstance(value, Mapping), path, "a mapping", value)
        item_kind = parts[1] if parts else Any
        return {key: decode(item_kind, item, f"{path}[{key}]") for key, item in value.items()}
    return _decode_scalar(kind, value, path)


def _decode_scalar(kind: Any, value: Any, path: str) -> Any:
    if issubclass(kind, StrEnum):
        members = [str(member) for member in kind]
        _expect(value in members, path, f"one of {members}", value)
        return kind(value)
    is_right = type(value) is kind or (kind is float and type(value) is int)
    _expect(is_right, path, f"of type {kind.__name__}", value)
    return value


def _decode_dataclass(kind: Any, value: Any, path: str) -> Any:
    _expect(isinstance(value, Mapping), path, f"a {kind.__name__}", value)
    hints = _hints(kind)
    if value.keys() != hints.keys():
        missing, unknown = sorted(hints.keys() - value.keys()), sorted(value.keys() - hints.keys())
        raise RankError(
            f"message {path!r} of another rank is not a {kind.__name__}: missing fields {missing}, unknown fields "
            f"{unknown}. Install the same version of fluxexp on every machine."
        )
    return kind(**{name: decode(hint, value[name], f"{path}.{name}") for name, hint in hints.items()})


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _expect(is_right: bool, path: str, what: str, value: Any) -> None:
    if not is_right:
        raise RankError(
            f"message {path!r} of another rank must be {what}, but is {value!r:.80}. "
            "Install the same version of fluxexp on every machine."
        )
