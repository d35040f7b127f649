"""Sentences about a dataset that was opened: what was skipped, is missing or is not used."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_NAMED = 5
"""Number of names in a sentence. The rest is counted."""


def note(count: int, nouns: tuple[str, str], what: str, names: Iterable[object] = ()) -> list[str]:
    """`2 pictures were skipped: a, b`, as a list; empty if `count` is 0.

    Args:
        count: number of things.
        nouns: their name in singular and plural.
        what: the rest of the sentence.
        names: the first of them are named.
    """
    if not count:
        return []
    return [f"{count} {nouns[count != 1]} {what}{_listed(count, list(names))}"]


def _listed(count: int, names: Sequence[object]) -> str:
    if not names:
        return ""
    more = f" and {count - _NAMED} more" if count > _NAMED else ""
    return f": {', '.join(map(str, names[:_NAMED]))}{more}"
