"""Collects the figures of all processes, and writes them as a table and as JSON. Does not import torch."""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HEADER = (
    f"{'engine':<28} {'case':<16} {'batch':>5}  {'s/image':>8} {'(min - max)':>17}  {'ms/step':>8} "
    f"{'TFLOP/s':>8} {'of matmul':>9}  {'first s':>8} {'peak GiB':>8} {'waiting':>8}"
)


@dataclass(slots=True)
class Report:
    """All figures so far. The benchmark writes them after each new figure, in case it does not reach its end."""

    path: Path | None
    about: dict[str, Any]
    """Device, model, date, command, settings and versions."""
    starts: list[dict[str, Any]] = field(default_factory=list)
    """For each process: engine, round, time of imports and loading, rate of matrix products, and error if any."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """`measure.Row` values, each with its `round`."""
    programs: list[dict[str, Any]] = field(default_factory=list)
    """Results of whole programs."""

    def write(self) -> None:
        """Write all figures to `path`, if there is one."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {**self.about, "points": self.points(), **_lists(self)}
        partial = self.path.with_name(self.path.name + ".part")
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(self.path)

    @property
    def matmul_tflops(self) -> float | None:
        """Rate of a large matrix product on the device, in TFLOP/s: the median over all processes."""
        rates = [start["matmul_tflops"] for start in self.starts if "matmul_tflops" in start]
        return statistics.median(rates) if rates else None

    def points(self) -> list[dict[str, Any]]:
        """One entry for each engine and case, from the stretches of all rounds."""
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in self.rows:
            groups.setdefault((row["engine"], row["case"]), []).append(row)
        return [self._point(rows) for rows in groups.values()]

    def _point(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        seconds = [value for row in rows for value in row["image_s"]]
        point = {name: rows[0][name] for name in ("engine", "case", "batch", "steps")}
        point |= {"image_s": statistics.median(seconds), "image_s_min": min(seconds), "image_s_max": max(seconds)}
        point |= {name: _median([row[name] for row in rows]) for name in ("step_s", "tflops", "peak_gib", "waiting")}
        point["of_matmul"] = _ratio(point["tflops"], self.matmul_tflops)
        point["first_batch_cold_s"] = _median([row["first_batch_s"] for row in rows if row["round"] == 0])
        point["first_batch_warm_s"] = _median([row["first_batch_s"] for row in rows if row["round"] > 0])
        return point

    def table(self) -> str:
        """A table of all points, and for each case the speed of the engines relative to the first one."""
        points = self.points()
        lines = [HEADER, *(line(point) for point in points)]
        for case in dict.fromkeys(point["case"] for point in points):
            same_case = [point for point in points if point["case"] == case]
            ratios = [f"{p['engine']} {same_case[0]['image_s'] / p['image_s']:.2f}" for p in same_case[1:]]
            if ratios:
                lines.append(f"{case}: speed relative to {same_case[0]['engine']}: {', '.join(ratios)}")
        return "\n".join(lines)


def line(point: dict[str, Any]) -> str:
    """The line of the table for a point."""
    spread = f"({point['image_s_min']:.3f} - {point['image_s_max']:.3f})"
    first = point["first_batch_cold_s"] if point["first_batch_cold_s"] is not None else point["first_batch_warm_s"]
    return (
        f"{point['engine']:<28} {point['case']:<16} {point['batch']:5.1f}  {point['image_s']:8.3f} {spread:>17}  "
        f"{_number(point['step_s'], 1000):>8} {_rate(point['tflops']):>8} {_number(point['of_matmul'], 100, '%'):>9}  "
        f"{first:8.2f} {_number(point['peak_gib']):>8} {_number(point['waiting'], 100, '%'):>8}"
    )


def now() -> str:
    """The current time in UTC, as ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _lists(report: Report) -> dict[str, Any]:
    return {
        "matmul_tflops": report.matmul_tflops,
        "starts": report.starts,
        "rows": report.rows,
        "programs": report.programs,
    }


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _ratio(value: float | None, whole: float | None) -> float | None:
    return value / whole if value is not None and whole else None


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _number(value: float | None, factor: float = 1.0, unit: str = "") -> str:
    return "-" if value is None else f"{value * factor:.1f}{unit}"
