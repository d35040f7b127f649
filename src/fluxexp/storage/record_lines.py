"""Parses the record streams of a store. Damaged lines are listed and left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from fluxexp.storage.run_store import RunStore

T = TypeVar("T")


@dataclass(slots=True)
class ParsedLines(Generic[T]):
    """The readable lines of some streams in order, and a message for each damaged line."""

    values: list[T] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)


def parse_streams(store: RunStore, streams: Iterable[str], parse: Callable[[str], T], problem: str) -> ParsedLines[T]:
    """Parse every line of `streams`. `parse` raises ValueError for a damaged line.

    Args:
        store: holds the streams.
        streams: keys of the streams, in the order in which to read them.
        parse: makes a value from a line without its newline.
        problem: names the damage in messages, for example "is not a record".
    """
    parsed: ParsedLines[T] = ParsedLines()
    for stream in streams:
        try:
            lines = store.records(stream)
        except OSError as error:
            parsed.damage.append(f"{store.address}/{stream} cannot be read: {error}")
            continue
        for number, line in enumerate(lines, start=1):
            try:
                parsed.values.append(parse(line.decode("utf-8", errors="replace")))
            except (ValueError, RecursionError) as error:  # JSON can be nested too deeply for the parser
                parsed.damage.append(f"{store.address}/{stream}, line {number} {problem}: {error}; remove this line")
    return parsed


def line_streams(store: RunStore, folder: str) -> list[str]:
    """Keys of the JSON Lines streams in `folder` (ends with a slash), sorted by name."""
    return [key for key in store.list(folder) if key.endswith(".jsonl")]
