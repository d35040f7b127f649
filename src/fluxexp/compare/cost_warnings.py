"""Warns if the costs of a sweep cannot be right: fewer steps cost more than more steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fluxexp.compare.cost import MIXED, Cost, runs_alike
from fluxexp.compare.run_view import RunView
from fluxexp.compare.settings import label, varied_settings


@dataclass(frozen=True, slots=True)
class _Priced:
    steps: float
    label: str
    cost_s: float
    low_s: float
    high_s: float


def cost_warnings(runs: Sequence[RunView], costs: Sequence[Cost]) -> list[str]:
    """A sentence for each group of points that differ only in steps, if one with fewer steps costs more.

    The intervals of both costs must not overlap. Points that share batches count once.
    """
    settings = varied_settings([run.config for run in runs])
    warnings = []
    for alike in runs_alike(runs, range(len(runs)), ("sampling.steps", *MIXED)):
        priced = []
        for mixed in runs_alike(runs, alike, MIXED):
            kept = {name: value for name, value in settings[mixed[0]].items() if not name.startswith(MIXED)}
            if (one := _priced(runs[mixed[0]], costs[mixed[0]], label(kept))) is not None:
                priced.append(one)
        pairs = [(a, b) for a in priced for b in priced if a.steps < b.steps and a.low_s > b.high_s]
        if pairs:
            warnings.append(_sentence(*max(pairs, key=lambda pair: pair[0].cost_s / pair[1].cost_s)))
    return warnings


def _priced(run: RunView, cost: Cost, name: str) -> _Priced | None:
    """None if the interval of the cost is unknown. With a step cache, steps are those that the denoiser computed."""
    if cost.device_s_per_image is None or cost.device_s_low is None or cost.device_s_high is None:
        return None
    computed = run.results.known("computed_steps")
    steps = float(computed.mean()) if len(computed) else run.config.sampling.steps * run.config.sampling.strength
    return _Priced(steps, name, cost.device_s_per_image, cost.device_s_low, cost.device_s_high)


def _sentence(fewer: _Priced, more: _Priced) -> str:
    return (
        f"{fewer.label} costs {fewer.cost_s:.3g} s per image, more than {more.label} ({more.cost_s:.3g} s), which has "
        "more steps: a device was busy or slowed down, so the costs of this sweep are not reliable; make it again with "
        "output.overwrite=true when nothing else uses the devices"
    )
