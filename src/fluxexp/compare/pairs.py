"""Compares two runs image by image. A pair of images has the same sample and the same noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fluxexp.compare.run_view import PairKey, RunView
from fluxexp.compare.statistics import Difference, difference_of
from fluxexp.metrics.catalog import info

CHANGED_MOST = 8
"""Number of samples that a comparison lists."""
Values = Mapping[PairKey, float]


def paired(values: Values, baseline: Values, metric: str) -> Difference | None:
    """Difference of `values` from `baseline` over the images that both have; None if there are none."""
    pairs = [pair for pair in values if pair in baseline]
    if not pairs:
        return None
    ours, theirs = [values[pair] for pair in pairs], [baseline[pair] for pair in pairs]
    known = info(metric)
    return difference_of(ours, theirs, [sample for sample, _, _ in pairs], known.higher_is_better, known.is_flag)


def compare(run: RunView, baseline: RunView, judged_by: str | None) -> dict[str, Any] | None:
    """Difference of every metric that both runs have, and the samples whose `judged_by` metric differs most.

    None if there is no pair of images.
    """
    keys, other_keys = run.keys(), baseline.keys()
    num_pairs = sum(pair in other_keys for pair in keys)
    if not num_pairs:
        return None
    found = {name: paired(run.values(name), baseline.values(name), name) for name in run.quality()}
    return {
        "num_pairs": num_pairs,
        "metrics": {name: difference.to_json() for name, difference in found.items() if difference},
        "changed_most": _changed_most(run, baseline, judged_by) if judged_by else [],
    }


def _changed_most(run: RunView, baseline: RunView, metric: str) -> Sequence[dict[str, Any]]:
    keys, other_keys = run.keys(), baseline.keys()
    theirs = baseline.values(metric)
    changes = {pair: value - theirs[pair] for pair, value in run.values(metric).items() if pair in theirs}
    most = sorted(changes, key=lambda pair: (-abs(changes[pair]), pair))[:CHANGED_MOST]
    return [
        {
            "sample_key": pair[0],
            "variant": pair[1],
            "key": keys[pair],
            "baseline_key": other_keys[pair],
            "difference": changes[pair],
        }
        for pair in most
        if changes[pair]
    ]
