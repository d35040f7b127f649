"""The figures at the top of a sweep's page. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fluxexp.compare.verdicts import round_up
from fluxexp.metrics.catalog import info
from fluxexp.report.run_facts import Figure, interval, mapping, sequence
from fluxexp.report.sweep_data import PointData, SweepData
from fluxexp.report.wording import duration, number

_MAX_GROUPS = 6
"""At most this many references have a figure."""


def headline(data: SweepData, quality_metric: str | None, answer: Mapping[str, Any]) -> list[Figure]:
    """The cheapest sufficient point with its cost and quality, then the number of points and images, and the time."""
    return [*_chosen(data, quality_metric, answer), *_totals(data.values)]


def warnings(values: Mapping[str, Any]) -> list[str]:
    """What makes the answer less certain, as sentences; empty for older sweeps."""
    return [str(warning) for warning in sequence(values.get("warnings"))]


def verdict_of(answer: Mapping[str, Any], index: int) -> str:
    """What the answer says of a point: `enough`, `not enough` or `undecided`; empty for older sweeps."""
    return str(_verdict(answer, index).get("verdict") or "")


def verdict_text(answer: Mapping[str, Any], index: int) -> str:
    """The verdict on a point, with the number of samples that would decide it; empty for older sweeps."""
    needed = _verdict(answer, index).get("num_samples_needed")
    more = f", about {number(round_up(needed))} samples would decide" if isinstance(needed, int) else ""
    return verdict_of(answer, index) + more


def sentences(answer: Mapping[str, Any]) -> list[str]:
    """The first sentence of the answer, then its other paragraphs: one for each reference if there are several."""
    parts = [str(group.get("sentence") or "") for group in groups(answer)] or [str(answer.get("sentence") or "")]
    first, dot, rest = parts[0].partition(". ")
    return [part for part in (first + dot.strip(), rest, *parts[1:]) if part]


def groups(answer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The answers for each reference, if points are judged by their distance from a reference; else empty."""
    return [mapping(group) for group in sequence(answer.get("groups"))]


def answer_points(answer: Mapping[str, Any]) -> set[int]:
    """Numbers of the cheapest sufficient points: one, or one for each reference."""
    found = (part.get("cheapest") for part in (answer, *groups(answer)))
    return {index for index in found if isinstance(index, int)}


def _verdict(answer: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    return next((v for v in map(mapping, sequence(answer.get("verdicts"))) if v.get("point") == index), {})


def cost_interval(point: PointData) -> str:
    """The 95 % interval of the device time per image of a point; empty if it is not known."""
    low, high = point.cost_interval()
    return "" if low is None or high is None else f"{number(low)} to {number(high)} s"


def _chosen(data: SweepData, quality_metric: str | None, answer: Mapping[str, Any]) -> list[Figure]:
    cheapest, best = (_point(data, answer.get(name)) for name in ("cheapest", "best"))
    if cheapest is None:
        return [figure for group in groups(answer)[:_MAX_GROUPS] for figure in _group(data, group)]
    is_enough = verdict_of(answer, cheapest.number) in ("enough", "")
    note = "not decided: see the verdicts" if answer.get("decided") is False else ""
    figures = [Figure("Cheapest sufficient point" if is_enough else "Best mean", cheapest.label, note)]
    cost = cheapest.cost()
    if cost is not None:
        figures.append(Figure("Device time per image", duration(cost), _cost_note(cheapest, best)))
    if quality_metric is not None and cheapest.mean(quality_metric).get("mean") is not None:
        mean = cheapest.mean(quality_metric)
        within = interval(mean)
        value = f"{number(mean['mean'])} {info(quality_metric).unit}".strip()
        figures.append(Figure(info(quality_metric).title, value, f"95 % interval: {within}" if within else ""))
    if cheapest.cost("joules_per_image") is not None:
        figures.append(Figure("Energy per image", f"{number(cheapest.cost('joules_per_image'))} J"))
    if cheapest.cost("usd_per_image") is not None:
        figures.append(Figure("Price per image", f"${number(cheapest.cost('usd_per_image'))}"))
    return figures


def _group(data: SweepData, group: Mapping[str, Any]) -> list[Figure]:
    """The answer for the points that have one reference."""
    reference, cheapest, closest = (_point(data, group.get(name)) for name in ("reference", "cheapest", "closest"))
    if reference is None or cheapest is None:
        return []
    is_enough = cheapest is not reference
    shown = cheapest if is_enough or closest is None else closest
    doubt = "" if is_enough else "not shown to be close enough"
    doubt = "not decided" if group.get("decided") is False else doubt
    note = "; ".join(part for part in (f"{duration(shown.cost())} per image", doubt) if part)
    return [Figure(f"{'Close enough' if is_enough else 'Closest'} to {reference.label}", shown.label, note)]


def _cost_note(cheapest: PointData, best: PointData | None) -> str:
    within, saving = cost_interval(cheapest), _saving(cheapest.cost() or 0.0, best)
    return "; ".join(part for part in (f"95 % interval: {within}" if within else "", saving) if part)


def _saving(cost: float, best: PointData | None) -> str:
    """How much cheaper `cost` is than the best point; empty if it is not cheaper, or if a cost is unknown."""
    other = None if best is None else best.cost()
    if not other or not cost or best is None or other <= cost:
        return ""
    return f"{number(other / cost, 2)} times cheaper than {best.label}"


def _totals(values: Mapping[str, Any]) -> list[Figure]:
    failed = values.get("num_failed")
    note = f"{number(failed)} failed" if failed else ""
    figures = [
        Figure("Points", number(values.get("num_points"))),
        Figure("Images", number(values.get("num_ok")), note),
    ]
    if values.get("wall_s") is not None:
        figures.append(Figure("Wall time", duration(values["wall_s"]), "last session"))
    return figures


def _point(data: SweepData, index: Any) -> PointData | None:
    return data.points[index] if isinstance(index, int) and 0 <= index < len(data.points) else None
