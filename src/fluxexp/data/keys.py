"""Keys of samples that have none of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fluxexp.records import content_hash


def content_key(*parts: object) -> str:
    """A short name for what a sample is made of."""
    return content_hash([None if part is None else str(part) for part in parts], 12)


def distinct(keys: Iterable[str]) -> Iterator[str]:
    """`keys`, the second and further of equal ones with -2, -3, ... behind."""
    seen: dict[str, int] = {}
    for key in keys:
        count = seen.get(key, 0) + 1
        seen[key] = count
        yield key if count == 1 else f"{key}-{count}"
