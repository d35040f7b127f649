"""Measures by simulation how often the confidence intervals of fluxexp contain the true value. Nominal: 95 %.

Each row is a distribution of scores with a known mean, or of pairs of scores with a known mean difference. `bootstrap`
is the percentile bootstrap over samples, for comparison. `above` and `below` are the error rates of the one-sided
claims that verdicts rest on (nominal: at most 5 %): a p-value says "above the true value", or "below", which is wrong.

    python benchmarks/interval_coverage.py [--trials 5000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fluxexp.arrays import Float64Array
from fluxexp.compare.intervals import Evidence, evidence_of_difference, evidence_of_mean
from fluxexp.experiment.provenance import git_revision, versions

_SIZES = (8, 16, 48, 200)
_GOAL, _GOAL_FROM = 0.93, 16
"""Every row should have at least this coverage from this number of samples on."""
_ALPHA = 0.05
_RESAMPLES = 1000
_BOOTSTRAP_TRIALS = 0.1
"""Fraction of the trials for which the bootstrap is computed, because it is slow."""
_IMAGES = 4
"""Images per sample of the clustered rows."""

Scores = tuple[Float64Array, Float64Array | None]
"""Scores, and the scores of the other side if they are paired. Each has the shape (samples, images per sample)."""


@dataclass(frozen=True, slots=True)
class Row:
    """A distribution of scores."""

    name: str
    truth: float
    """The true mean, or the true mean difference."""
    draw: Callable[[np.random.Generator, int], Scores]
    """Scores of a number of samples."""
    has_goal: bool = True
    """False for scores whose interval can only be wrong with few samples: most samples do not show what varies."""


def main() -> None:
    """Print the table, write the figures to the file given by `--json`, and say whether the goal is reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5000, help="number of simulated runs per row and size")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    print(f"{'scores':42} samples  coverage  above  below  bootstrap")
    figures = [_measure(row, number, args.trials) for row in rows() for number in _SIZES]
    worst = _lowest(figures, has_goal=True)
    print(f"lowest coverage from {_GOAL_FROM} samples on: {_named(worst)}; goal {_GOAL:.0%}")
    print(f"without a goal, because few samples show a change: {_named(_lowest(figures, has_goal=False))}")
    report = {"trials": args.trials, "goal": _GOAL, "lowest": worst["coverage"], "rows": figures}
    report |= {"git_revision": git_revision(), "versions": versions()}
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


def _lowest(figures: Sequence[dict[str, Any]], *, has_goal: bool) -> dict[str, Any]:
    """The figures with the lowest coverage among the rows with or without a goal."""
    counted = [row for row in figures if row["num_samples"] >= _GOAL_FROM and row["has_goal"] == has_goal]
    return min(counted, key=lambda row: float(row["coverage"]))


def _named(figures: dict[str, Any]) -> str:
    return f"{figures['coverage']:.1%} ({figures['scores']}, {figures['num_samples']} samples)"


def rows() -> list[Row]:
    """All distributions."""
    shares = (0.05, 0.1, 0.3, 0.5, 0.9, 0.97)
    return [
        *(Row(f"0/1, p={p:g}", p, _flags(p, 1)) for p in shares),
        *(Row(f"0/1, p={p:g}, {_IMAGES} images per sample", p, _flags(p, _IMAGES)) for p in shares),
        *(Row(f"paired 0/1, p={p:g} and {p - d:g}", d, _paired_flags(p, p - d, 1)) for p, d in _PAIRS),
        *(
            Row(f"paired 0/1, p={p:g} and {p - d:g}, {_IMAGES} images", d, _paired_flags(p, p - d, _IMAGES))
            for p, d in _PAIRS
        ),
        Row("normal", 0.0, lambda rng, number: (rng.normal(size=(number, 1)), None)),
        Row("normal, 4 images per sample", 0.0, _clustered_normal),
        Row("exponential (skewness 2)", 1.0, lambda rng, number: (rng.exponential(size=(number, 1)), None)),
        Row("log-normal (skewness 6)", float(np.exp(0.5)), lambda rng, number: (rng.lognormal(size=(number, 1)), None)),
        Row("beta (0.5, 5), like a fraction of pixels", 0.5 / 5.5, lambda rng, n: (rng.beta(0.5, 5, (n, 1)), None)),
        Row("Student's t with 3 degrees of freedom", 0.0, lambda rng, n: (rng.standard_t(3, (n, 1)), None)),
        *(Row(f"paired, {p:.0%} changed by about 0.5", 0.5 * p, _few_changes(p), has_goal=False) for p in _CHANGED),
    ]


_CHANGED = (0.03, 0.1, 0.3, 0.5)
"""Fractions of the pairs whose scores differ."""
_PAIRS = ((0.05, 0.0), (0.5, 0.0), (0.9, 0.0), (0.97, 0.0), (0.9, 0.03), (0.9, 0.1), (0.97, 0.07), (0.5, 0.3))


def _flags(share: float, images: int) -> Callable[[np.random.Generator, int], Scores]:
    """Values 0 and 1. Images of one sample have an intraclass correlation of 0.5 (beta-binomial)."""

    def draw(rng: np.random.Generator, number: int) -> Scores:
        shares = np.full((number, 1), share) if images == 1 else rng.beta(share, 1 - share, (number, 1))
        return (rng.random((number, images)) < shares).astype(np.float64), None

    return draw


def _paired_flags(share: float, other: float, images: int) -> Callable[[np.random.Generator, int], Scores]:
    """Values 0 and 1 of two points. Seven of ten pairs share what decides them: the sample and the noise."""

    def draw(rng: np.random.Generator, number: int) -> Scores:
        luck, own = rng.random((number, images)), rng.random((number, images))
        if images > 1:  # half of the images share the luck of their sample
            luck = np.where(rng.random((number, images)) < 0.5, luck[:, :1], luck)
        shared = np.broadcast_to(rng.random((number, 1)) < 0.7, luck.shape)
        return (luck < share).astype(np.float64), (np.where(shared, luck, own) < other).astype(np.float64)

    return draw


def _few_changes(share: float) -> Callable[[np.random.Generator, int], Scores]:
    """Scores of two points that are equal for most samples, and differ much for a `share` of them."""

    def draw(rng: np.random.Generator, number: int) -> Scores:
        baseline = rng.uniform(0.0, 0.3, (number, 1))
        changes = rng.normal(0.5, 0.1, (number, 1)) * (rng.random((number, 1)) < share)
        return baseline + changes, baseline

    return draw


def _clustered_normal(rng: np.random.Generator, number: int) -> Scores:
    return rng.normal(size=(number, 1)) + rng.normal(size=(number, _IMAGES)), None


def _measure(row: Row, number: int, trials: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    inside = above = below = bootstrapped = 0
    num_bootstraps = max(1, int(trials * _BOOTSTRAP_TRIALS))
    for trial in range(trials):
        scores = row.draw(rng, number)
        evidence = _evidence(*scores)
        low, high = evidence.interval()
        inside += low <= row.truth <= high
        above += evidence.p_above(row.truth) < _ALPHA
        below += evidence.p_below(row.truth) < _ALPHA
        if trial < num_bootstraps:
            bootstrapped += _bootstrap(rng, *scores, row.truth)
    figures: dict[str, Any] = {"scores": row.name, "num_samples": number, "coverage": inside / trials}
    figures |= {"above": above / trials, "below": below / trials, "bootstrap": bootstrapped / num_bootstraps}
    figures["has_goal"] = row.has_goal
    print(
        f"{row.name:42} {number:7}  {figures['coverage']:8.1%}  {figures['above']:5.1%}  {figures['below']:5.1%}  "
        f"{figures['bootstrap']:9.1%}",
        flush=True,
    )
    return figures


def _evidence(values: Float64Array, baseline: Float64Array | None) -> Evidence:
    samples: Sequence[int] = np.repeat(np.arange(len(values)), values.shape[1]).tolist()
    if baseline is None:
        found = evidence_of_mean(values.ravel(), samples)
    else:
        found = evidence_of_difference(values.ravel(), baseline.ravel(), samples)
    assert found is not None
    return found


def _bootstrap(rng: np.random.Generator, values: Float64Array, baseline: Float64Array | None, truth: float) -> bool:
    """Whether the percentile bootstrap interval contains the true value."""
    means = (values if baseline is None else values - baseline).mean(1)
    resampled = means[rng.integers(len(means), size=(_RESAMPLES, len(means)))].mean(1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return bool(low - 1e-12 <= truth <= high + 1e-12)


if __name__ == "__main__":
    main()
