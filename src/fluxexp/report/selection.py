"""Which results a page shows where it cannot show all: the failed, the worst, the best, and some of the rest. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fluxexp.metrics.catalog import info
from fluxexp.records import Record

MOST_RESULTS = 500
"""On one page."""
_FAILED, _WORST, _BEST = 0.2, 0.4, 0.2
"""Shares of the page."""


def select(
    records: Sequence[Record],
    scores: Mapping[str, Mapping[str, float | None]],
    metric: str | None,
    limit: int = MOST_RESULTS,
) -> list[Record]:
    """At most `limit` of `records`, in their order.

    Of more, a fifth may be failed ones; of the others the worst and the best by `metric`, and evenly spread ones.
    """
    if len(records) <= limit:
        return list(records)
    failed = [record for record in records if record.status != "ok"]
    made = [record for record in records if record.status == "ok"]
    num_failed = min(len(failed), max(int(limit * _FAILED), limit - len(made)))
    keys = {record.key for record in failed[:num_failed]}
    keys |= _of_made(made, scores, metric, limit - num_failed)
    return [record for record in records if record.key in keys]


def _of_made(
    made: Sequence[Record], scores: Mapping[str, Mapping[str, float | None]], metric: str | None, limit: int
) -> set[str]:
    if len(made) <= limit:
        return {record.key for record in made}
    values = {r.key: value for r in made if metric and (value := scores.get(r.key, {}).get(metric)) is not None}
    sign = -1.0 if metric and info(metric).higher_is_better is False else 1.0
    ranked = sorted(values, key=lambda key: sign * values[key])
    chosen = {*ranked[: int(limit * _WORST)], *ranked[len(ranked) - int(limit * _BEST) :]} if ranked else set()
    others = [record.key for record in made if record.key not in chosen]
    missing = limit - len(chosen)
    return chosen | {others[number * len(others) // missing] for number in range(missing)}
