"""Why tasks failed: the commonest reasons, for the summary and the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fluxexp.plan import Plan, TaskResults

MAX_REASONS = 5
_PLACE = re.compile(r"(?P<place>[^:]*(?:[/.\\]|, row \d)[^:]*): (?P<reason>.+)", re.DOTALL)
"""Errors of samples begin with the file, or the file and the row. Samples with the same problem differ only in it."""
_MAX_CHARACTERS = 200


def failure_reasons(plan: Plan, results: TaskResults) -> list[dict[str, Any]]:
    """The most frequent reasons of failed tasks, as JSON: `reason`, `count`, and the sample key of an `example`.

    Errors that differ only in the file are one reason.
    """
    found: dict[str, list[tuple[int, int]]] = {}
    for error, place in results.errors().items():
        found.setdefault(_reason(error), []).append(place)
    return _commonest(
        {
            "reason": reason,
            "count": sum(count for count, _ in places),
            "example": plan.dataset.key(plan.sample_index(min(first for _, first in places))),
        }
        for reason, places in found.items()
    )


def merged_reasons(summaries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The most frequent reasons of several runs, from their summaries."""
    found: dict[str, dict[str, Any]] = {}
    for summary in summaries:
        for entry in summary.get("failure_reasons", ()):
            known = found.setdefault(entry["reason"], {**entry, "count": 0})
            known["count"] += entry["count"]
    return _commonest(found.values())


def reason_lines(summary: Mapping[str, Any]) -> list[str]:
    """Lines for the terminal: a line for each reason, and one for the failures with other reasons."""
    reasons: Sequence[Mapping[str, Any]] = summary.get("failure_reasons", ())
    lines = []
    for entry in reasons:
        others = f" and {entry['count'] - 1} more" if entry["count"] > 1 else ""
        lines.append(f"failed     {entry['count']} x {entry['reason']} (sample {entry['example']}{others})")
    rest = summary["num_failed"] - sum(entry["count"] for entry in reasons)
    if reasons and rest > 0:
        lines.append(f"failed     {rest} x for other reasons (listed in report.html)")
    return lines


def _reason(error: str) -> str:
    match = _PLACE.fullmatch(error)
    text = " ".join((match["reason"] if match else error).split())
    return text if len(text) <= _MAX_CHARACTERS else f"{text[: _MAX_CHARACTERS - 3]}..."


def _commonest(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(entries, key=lambda entry: -entry["count"])[:MAX_REASONS]
