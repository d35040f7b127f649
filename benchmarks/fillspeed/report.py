"""The benchmark's figures: gathered from all processes, as one table and one JSON. Imports no torch."""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HEADER = (
    f"{'engine':<28} {'case':<16} {'batch':>5}  {'s/image':>8} {'(least - most)':>17}  {'ms/step':>8} "
    f"{'TFLOP/s':>8} {'of matmul':>9}  {'first s':>8} {'peak GiB':>8} {'waiting':>8}"
)


@dataclass(slots=True)
class Report:
    """Everything measured so far. Written anew after each figure: a benchmark may be cut off."""

    path: Path | None
    about: dict[str, Any]
    """Device, versions, date, settings."""
    starts: list[dict[str, Any]] = field(default_factory=list)
    """Of each process: engine, round, imports, loading, the matmul rate it saw, how it ended."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    programs: list[dict[str, Any]] = field(default_factory=list)

    def write(self) -> None:
        """Write all that is known to `path`."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {**self.about, "points": self.points(), **_lists(self)}
        partial = self.path.with_name(self.path.name + ".part")
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(self.path)

    @property
    def matmul_tflops(self) -> float | None:
        """The device's rate on a large matrix product: the median over all processes."""
        rates = [start["matmul_tflops"] for start in self.starts if "matmul_tflops" in start]
        return statistics.median(rates) if rates else None

    def points(self) -> list[dict[str, Any]]:
        """One entry for each engine and case, the stretches of all rounds together."""
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
        """All points, and how they compare with the first engine."""
        points = self.points()
        lines = [HEADER, *(line(point) for point in points)]
        for case in dict.fromkeys(point["case"] for point in points):
            alike = [point for point in points if point["case"] == case]
            ratios = [f"{p['engine']} {alike[0]['image_s'] / p['image_s']:.2f}" for p in alike[1:]]
            if ratios:
                lines.append(f"{case}: times as fast as {alike[0]['engine']}: {', '.join(ratios)}")
        return "\n".join(lines)


def line(point: dict[str, Any]) -> str:
    """One line of the table."""
    spread = f"({point['image_s_min']:.3f} - {point['image_s_max']:.3f})"
    first = point["first_batch_cold_s"] if point["first_batch_cold_s"] is not None else point["first_batch_warm_s"]
    return (
        f"{point['engine']:<28} {point['case']:<16} {point['batch']:5.1f}  {point['image_s']:8.3f} {spread:>17}  "
        f"{_number(point['step_s'], 1000):>8} {_rate(point['tflops']):>8} {_number(point['of_matmul'], 100, '%'):>9}  "
        f"{first:8.2f} {_number(point['peak_gib']):>8} {_number(point['waiting'], 100, '%'):>8}"
    )


def now() -> str:
    """The time, UTC, as ISO 8601."""
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
