"""Tests of the report's pure functions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fluxexp.address import Address
from fluxexp.records import Record
from fluxexp.report.axes import axes_of
from fluxexp.report.comparisons import verdict
from fluxexp.report.failed_tasks import MAX_LISTED, failures, kind_of
from fluxexp.report.page import island
from fluxexp.report.run_data import RunData, read_run
from fluxexp.report.run_facts import headline
from fluxexp.report.selection import select
from fluxexp.report.sweep_data import PointData
from fluxexp.report.sweep_grid import axes_data
from fluxexp.report.thumbnails import SIDES, fitting
from fluxexp.report.what_ran import sweep_command
from fluxexp.report.wording import duration, number, settings
from fluxexp.storage.run_directory import RunDirectory
from tests.report.fake_directories import NASTY, make_run, make_samples

RECORD = Record(
    key="", sample_key="", status="ok", file="images/a.png", error=None, prompt="", seed=0, variant=0, steps=4,
    guidance=1.0, height=32, width=32, covered=1.0, rank=0, device="CPU", batch_size=1, seconds={}, attempt=1,
)  # fmt: skip


def records(number: int, num_failed: int = 0) -> list[Record]:
    ok = [replace(RECORD, key=f"k{index}", sample_key=f"s{index}") for index in range(number)]
    error = "RuntimeError: no"
    failed = [replace(r, key=f"f{n}", status="failed", file=None, error=error) for n, r in enumerate(ok[:num_failed])]
    return [*ok[num_failed:], *failed]


@given(
    st.recursive(st.text() | st.floats() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
def test_no_text_can_end_the_element_of_the_data_island(data: object) -> None:
    text = island(data)
    assert not set("<>&\u2028\u2029") & set(text)
    json.loads(text)


def test_the_data_island_keeps_values_and_has_null_for_non_finite_numbers() -> None:
    assert json.loads(island(list(NASTY))) == list(NASTY)
    assert json.loads(island({"a": float("nan"), "b": float("inf"), "c": (1, 2.5)})) == {
        "a": None,
        "b": None,
        "c": [1, 2.5],
    }


def test_too_many_results_are_reduced_to_the_worst_the_best_and_some_failed_ones_in_order() -> None:
    everything = records(1000, num_failed=300)
    scores = {f"k{index}": {"ssim_hole": index / 1000} for index in range(1000)}
    chosen = select(everything, scores, "ssim_hole", limit=100)
    keys = [record.key for record in chosen]
    assert len(keys) == len(set(keys)) == 100
    assert sum(key.startswith("f") for key in keys) == 20
    assert {"k300", "k310", "k999"} <= set(keys)
    assert [record.key for record in everything if record.key in set(keys)] == keys


@pytest.mark.parametrize("metric", [None, "ssim_hole"])
@pytest.mark.parametrize(("number", "num_failed"), [(50, 0), (101, 100), (101, 3), (500, 499)])
def test_a_selection_fills_the_page(number: int, num_failed: int, metric: str | None) -> None:
    assert len(select(records(number, num_failed), {}, metric, limit=100)) == min(number, 100)


def test_failures_are_grouped_by_error_and_the_listed_keys_are_limited() -> None:
    (group,) = failures(records(1000, num_failed=500))
    assert (group.kind, group.count, group.num_samples) == ("RuntimeError: no", 500, 500)
    assert len(group.samples) == MAX_LISTED


@pytest.mark.parametrize(
    ("errors", "kind"),
    [
        (
            ("SampleError: /data/my photos/cat 01.png: image file is truncated (12 bytes not processed)",
             "SampleError: /data/x/cat-02.png: image file is truncated (3,120 bytes not processed)"),
            "SampleError: \u2026: image file is truncated (\u2026 bytes not processed)",
        ),
        (("cats.csv, row 3: the mask is empty", "cats.csv, row 41: the mask is empty"), "\u2026: the mask is empty"),
        (("cannot read 'a b/c d.png'", "cannot read 'e.png'"), "cannot read '\u2026'"),
        (("no image of key-0 in s3://b/x", "no image of key-1 in s3://c/y/z"), "no image of \u2026 in \u2026"),
        (
            ("CUDA out of memory: 20.00 GiB at 0x7f3a on GPU 0", "CUDA out of memory: 1.5 GiB at 0x11 on GPU 7"),
            "CUDA out of memory: \u2026 GiB at \u2026 on GPU \u2026",
        ),
        (("T5 is float32, not FLUX.1", "T5 is float32, not FLUX.1"), "T5 is float32, not FLUX.1"),
    ],
)  # fmt: skip
def test_errors_that_differ_in_paths_keys_and_numbers_are_one_kind(errors: tuple[str, str], kind: str) -> None:
    failed = [
        replace(RECORD, key=f"{n}bcdef", sample_key=f"key-{n}", status="failed", error=error)
        for n, error in enumerate(errors)
    ]
    (group,) = failures(failed)
    assert (group.kind, group.count, group.samples) == (kind, 2, ["key-0", "key-1"])
    assert (group.example, group.example_key) == (errors[0], "key-0")


def test_other_errors_stay_apart_and_a_single_message_is_shown_as_it_is() -> None:
    messages = ["KeyError: 'mask'", "KeyError: 'image'", "a.png: no mask", "a.png: no image"]
    failed = [replace(RECORD, status="failed", error=message) for message in messages]
    assert [group.kind for group in failures(failed)] == messages
    assert kind_of(failed[2]) == "\u2026: no mask"


def test_steps_are_the_first_axis_and_numbers_are_sorted() -> None:
    axes = axes_of(
        [{"sampling.guidance": g, "sampling.steps": s, "seed": 0} for g in (30.0, 1.0, 4.0) for s in (16, 2)]
    )
    assert axes is not None
    assert (axes.first.title, axes.first.levels) == ("Steps", ["2", "16"])
    assert axes.second is not None
    assert axes.second.levels == ["1", "4", "30"]
    assert list(axes.others) == []
    assert axes_of([{}, {}]) is None
    assert axes.place({"sampling.guidance": 4.0, "sampling.steps": 2}) == (0, 1)
    assert axes.place({"sampling.steps": 16}) == (1, 3)


def test_a_grid_has_steps_as_columns_and_another_setting_as_rows_and_a_search_a_column_per_point() -> None:
    def found(settings: list[dict[str, Any]]) -> tuple[Any, Any, list[str]]:
        points = [PointData(number, {}, values, None) for number, values in enumerate(settings)]
        data = axes_data(axes_of(settings), points)
        return data["columns"], data["rows"], [axis["title"] for axis in data["all"]]

    grid = [{"sampling.guidance": g, "sampling.steps": s, "x.name": x} for g in (1, 4) for s in (2, 8, 4) for x in "ab"]
    assert found(grid) == (0, 1, ["Steps", "Guidance", "X"])
    assert found([{"sampling.steps": s} for s in (1, 2)]) == (0, None, ["Steps"])
    search = [{"sampling.guidance": 1 + n / 7, "sampling.steps": n} for n in range(1, 9)]
    assert found(search) == (None, None, ["Steps", "Guidance"])
    assert found([{}, {}]) == (None, None, [])


@pytest.mark.parametrize(
    ("metric", "low", "high", "expected"),
    [
        ("ssim_hole", 0.1, 0.2, "better"),
        ("ssim_hole", -0.2, -0.1, "worse"),
        ("seam", 0.1, 0.2, "worse"),
        ("ssim_hole", -0.1, 0.2, ""),
        ("hole_change", 0.1, 0.2, ""),
        ("home_made", 0.1, 0.2, ""),
        ("ssim_hole", None, None, ""),
    ],
)
def test_a_verdict_needs_an_interval_that_excludes_zero_and_a_metric_with_a_direction(
    metric: str, low: float | None, high: float | None, expected: str
) -> None:
    assert verdict(metric, low, high) == expected


def test_the_command_of_a_complete_grid_is_reconstructed() -> None:
    points = [["+experiment=fill", f"sampling.steps={s}", f"sampling.guidance={g}"] for s in (1, 4) for g in (1, 30)]
    command = sweep_command(points)
    assert command == "accelerate launch -m fluxexp -m +experiment=fill sampling.steps=1,4 sampling.guidance=1,30"
    assert sweep_command(points[:3]) is None
    assert sweep_command([]) is None


def test_numbers_durations_and_settings_are_short() -> None:
    assert [number(value) for value in (0.0, 0.04567, 12.345, 1234.5, 7, None, float("nan"), "x")] == [
        "0", "0.0457", "12.3", "1,234", "7", "\u2013", "\u2013", "\u2013",
    ]  # fmt: skip
    assert [duration(value) for value in (0.25, 99.94, 150, 7320)] == ["0.250 s", "99.9 s", "2 min 30 s", "2 h 02 min"]
    assert settings({"sampling.steps": 4, "scheduler.name": "deis"}) == "steps\u00a04 \u00b7 scheduler\u00a0deis"


def test_thumbnails_are_the_largest_that_fit_the_budget() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8))
    assert fitting([noise], 1, 10_000_000).side == SIDES[0]
    small = fitting([noise], 500, 7_000_000)
    assert len(small.picture(noise)) * 500 <= 7_000_000
    assert fitting([noise], 500, 1).side == SIDES[-1]
    assert fitting([], 0, 1).side == SIDES[0]


def test_a_fake_run_has_no_missing_files(tmp_path: Path) -> None:
    data = read_run(RunDirectory(Address.of(make_run(tmp_path / "run", make_samples(4), failed=1))))
    assert [record.status for record in data.records.values()].count("failed") == 1
    assert data.notes == []


def test_a_slow_rank_is_at_the_top_of_the_page() -> None:
    slow = {"rank": 2, "relative_speed": 0.333, "cost_s": 4.2}
    data = RunData(
        directory=RunDirectory(Address.of("fill-1")),
        config={},
        overrides=[],
        records={},
        num_ok=3,
        num_failed=0,
        scores={},
        summary={"balance": {"slow_ranks": [slow, slow | {"cost_s": None}]}},
        logs=[],
        notes=[],
    )
    found = [(figure.value, figure.note) for figure in headline(data, None) if figure.label == "Slow rank"]
    speed = "33 % of the median speed of the other ranks"
    assert found == [("Rank 2", f"{speed}; about 4.20 s longer for it"), ("Rank 2", speed)]
