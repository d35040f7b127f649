"""The grid of a sweep's page: which results it shows, and which settings are its columns and rows. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fluxexp.report import run_facts as facts
from fluxexp.report.axes import Axes
from fluxexp.report.pictures import Result
from fluxexp.report.selection import MAX_RESULTS
from fluxexp.report.sweep_data import PointData, SweepData
from fluxexp.report.wording import short
from fluxexp.storage.result_files import sibling_link

_MAX_BLOCKS = 40
"""Maximum number of samples in the grid."""
_MIN_FILLED = 0.5
"""If fewer of the cells of columns and rows have a point, as after a search, each point gets a column instead."""


def axes_data(axes: Axes | None, points: Sequence[PointData]) -> dict[str, Any]:
    """What the page's scripts need to know about the axes of the grid.

    Returns:
        `all`: `name`, `title` and `levels` of each axis. `columns` and `rows`: the indexes of the axes that the page
        shows first. A null column means a column per point, and a null row means one row per sample.
    """
    if axes is None:
        return {"all": [], "columns": None, "rows": None}
    known = [{"name": short(axis.name), "title": axis.title, "levels": list(axis.levels)} for axis in axes.all]
    num_cells = math.prod(len(axis.levels) for axis in axes.all)
    num_filled = len({axes.place(point.settings) for point in points})
    if num_filled < _MIN_FILLED * num_cells or num_filled < len(points):
        return {"all": known, "columns": None, "rows": None}
    return {"all": known, "columns": 0, "rows": 1 if axes.second else None}


def grid_results(data: SweepData, columns: Sequence[int]) -> tuple[list[Result], int]:
    """The results that the grid shows, and the number of samples that a complete grid would have.

    A block of the grid is one image of one sample (sample key and image index), at every point. Samples that change
    most between points come first. The others follow in the order of the manifests.

    Args:
        data: the sweep.
        columns: numbers of the points, in the order in which the viewer shows them. Each must have a run.
    """
    points = {point.number: point for point in data.points}
    rows: dict[tuple[str, int], list[Result]] = {}
    for column in columns:
        point = points[column]
        assert point.run is not None
        for record in point.run.records.values():
            scores = {**point.run.scores.get(record.key, {}), **data.distances.get(record.key, {})}
            result = Result(record, point.run.directory.reader, sibling_link(point.run.name), scores, column)
            rows.setdefault((record.sample_key, record.variant), []).append(result)
    changed = [
        (str(change.get("sample_key")), change.get("variant"))
        for comparison in facts.sequence(data.values.get("comparisons"))
        for change in facts.sequence(facts.mapping(comparison).get("changed_most"))[:4]
        if isinstance(change, Mapping)
    ]
    order = [*(row for row in dict.fromkeys(changed) if row in rows), *rows]
    limit = min(_MAX_BLOCKS, max(4, MAX_RESULTS // max(1, len(columns))))
    shown = list(dict.fromkeys(order))[:limit]
    return [result for row in shown for result in rows[row]], len(rows)
