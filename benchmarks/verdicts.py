"""Simulates two sweeps on disjoint samples, many times: how often do the answers differ, and how often are they wrong?

The points have 1, 2, 4, 8 and 16 steps, costs in proportion, and 0/1 scores with known success rates. Two points share
what decides seven of ten of their scores, as results from the same noise do. `means` is the rule without intervals: the
cheapest point whose mean is within the tolerance of the best mean.

    python benchmarks/verdicts.py [--pairs 200] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fluxexp.compare.decision import decide
from fluxexp.compare.statistics import mean_of
from fluxexp.compare.verdicts import Candidate
from fluxexp.experiment.provenance import git_revision, versions
from fluxexp.metrics.catalog import info

_STEPS = (1, 2, 4, 8, 16)
_CASES = {
    "quality saturates at 4 steps": (0.75, 0.88, 0.97, 0.975, 0.98),
    "quality rises to the end": (0.6, 0.7, 0.8, 0.87, 0.93),
    "4 steps lose as much as the tolerance": (0.7, 0.85, 0.94, 0.965, 0.97),
}
_SIZES = (16, 48, 200, 1000)
_METRIC = info("adherence")


def main() -> None:
    """Print the table, and write the figures to the file given by `--json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200, help="number of simulated pairs of sweeps per row")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    print(f"{'case':38} samples  decided  wrong   agree  one decided  undecided  contradict   means differ")
    figures = [_measure(name, number, args.pairs) for name in _CASES for number in _SIZES]
    report = {"pairs": args.pairs, "tolerance": _METRIC.tolerance, "cases": _CASES, "rows": figures}
    report |= {"git_revision": git_revision(), "versions": versions()}
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


def _measure(case: str, number: int, pairs: int) -> dict[str, Any]:
    """Fractions: of decided sweeps, of sweeps with a wrong verdict, and of pairs by how they agree."""
    rng = np.random.default_rng(number)
    counts: Counter[str] = Counter()
    for _ in range(pairs):
        sweeps = [_sweep(rng, _CASES[case], number) for _ in range(2)]
        answers = [_answer(candidates) for candidates in sweeps]
        counts["decided"] += sum(answer["decided"] for answer in answers)
        counts["wrong"] += sum(_is_wrong(answer, _CASES[case]) for answer in answers)
        counts[_agreement(*answers)] += 1
        counts["means differ"] += len({_by_means(candidates) for candidates in sweeps}) > 1
    of_sweeps = {name: counts[name] / (2 * pairs) for name in ("decided", "wrong")}
    of_pairs = {
        name: counts[name] / pairs for name in ("agree", "one decided", "undecided", "contradict", "means differ")
    }
    found = of_sweeps | of_pairs
    print(
        f"{case:38} {number:7} {found['decided']:8.1%} {found['wrong']:6.1%} {found['agree']:7.1%} "
        f"{found['one decided']:12.1%} {found['undecided']:10.1%} {found['contradict']:11.1%} "
        f"{found['means differ']:14.1%}",
        flush=True,
    )
    return {"case": case, "num_samples": number, **found}


def _sweep(rng: np.random.Generator, shares: Sequence[float], number: int) -> list[Candidate]:
    luck, shared = rng.random(number), rng.random(number) < 0.7
    candidates = []
    for steps, share in zip(_STEPS, shares, strict=True):
        scores = (np.where(shared, luck, rng.random(number)) < share).astype(np.float64).tolist()
        values = {(str(sample), 0, 0): score for sample, score in enumerate(scores)}
        mean = mean_of(scores, range(number), is_flag=True)
        candidates.append(Candidate(steps, f"steps={steps}", mean, float(steps), values))
    return candidates


def _answer(candidates: Sequence[Candidate]) -> dict[str, Any]:
    found = decide(candidates, _METRIC, _METRIC.tolerance)
    assert found is not None
    return found


def _is_wrong(answer: dict[str, Any], shares: Sequence[float]) -> bool:
    """Whether at least one verdict is wrong. At a loss equal to the tolerance, both claims are."""
    losses = {steps: round(max(shares) - share, 9) for steps, share in zip(_STEPS, shares, strict=True)}
    return any(
        (verdict["verdict"] == "enough" and losses[verdict["point"]] >= _METRIC.tolerance)
        or (verdict["verdict"] == "not enough" and losses[verdict["point"]] <= _METRIC.tolerance)
        for verdict in answer["verdicts"]
    )


def _agreement(one: dict[str, Any], other: dict[str, Any]) -> str:
    """`contradict`: both are decided and name different points, so one calls the other's point not enough."""
    if one["decided"] != other["decided"]:
        return "one decided"
    if not one["decided"]:
        return "undecided"
    return "agree" if one["cheapest"] == other["cheapest"] else "contradict"


def _by_means(candidates: Sequence[Candidate]) -> int:
    best = max(candidate.quality.mean for candidate in candidates)
    return min(c.number for c in candidates if c.quality.mean >= best - _METRIC.tolerance - 1e-12)


if __name__ == "__main__":
    main()
