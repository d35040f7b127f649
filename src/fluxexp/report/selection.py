"""Selects the results that a page shows if there are too many: failed, worst, best, and a sample of the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fluxexp.metrics.catalog import info
from fluxexp.records import Record

MAX_RESULTS = 500
"""Maximum number of results on one page."""
_FAILED, _WORST, _BEST = 0.2, 0.4, 0.2
"""Fractions: failed results of the page; worst and best results of those that did not fail."""


def select(
    records: Sequence[Record],
    scores: Mapping[str, Mapping[str, float | None]],
    metric: str | None,
    limit: int = MAX_RESULTS,
) -> list[Record]:
    """At most `limit` of `records`, in their order.

    If there are more than `limit`, failed results get up to a fifth of the places, and more if there are not enough
    others. Of the remaining places, 40 % go to the worst and 20 % to the best results by `metric`. The rest of the
    places go to results at regular intervals among the other results.
    """
    if len(records) <= limit:
        return list(records)
    failed = [record for record in records if record.status != "ok"]
    succeeded = [record for record in records if record.status == "ok"]
    num_failed = min(len(failed), max(int(limit * _FAILED), limit - len(succeeded)))
    keys = {record.key for record in failed[:num_failed]}
    keys |= _select_ok(succeeded, scores, metric, limit - num_failed)
    return [record for record in records if record.key in keys]


def _select_ok(
    succeeded: Sequence[Record], scores: Mapping[str, Mapping[str, float | None]], metric: str | None, limit: int
) -> set[str]:
    """Task keys of at most `limit` of the `succeeded` results."""
    if len(succeeded) <= limit:
        return {record.key for record in succeeded}
    values = {r.key: value for r in succeeded if metric and (value := scores.get(r.key, {}).get(metric)) is not None}
    # Ascending order of sign * value puts the worst first.
    sign = -1.0 if metric and info(metric).higher_is_better is False else 1.0
    ranked = sorted(values, key=lambda key: sign * values[key])
    chosen = {*ranked[: int(limit * _WORST)], *ranked[len(ranked) - int(limit * _BEST) :]} if ranked else set()
    others = [record.key for record in succeeded if record.key not in chosen]
    missing = limit - len(chosen)
    return chosen | {others[number * len(others) // missing] for number in range(missing)}
