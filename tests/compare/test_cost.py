"""Costs of real sweeps of the fake model, on a virtual clock: the device becomes slower linearly."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fluxexp.address import Address
from fluxexp.config import RunConfig
from fluxexp.experiment import SweepPoint, run_sweep
from fluxexp.worker.clock import HostClock

Compose = Callable[..., RunConfig]
Sweep = Callable[..., dict[str, Any]]
SMALL = (
    *("model=fake", "model.seconds_per_step=[0.01]", "dataset.height=32", "dataset.width=32", "dataset.length=60"),
    *("sampling.batch_size=5", "metrics=none", "report=off", "tracking=disabled"),
)


@pytest.fixture
def sweep(compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """`sweep(["scheduler.shift=1", ...], slowdown=2)`: the sweep.json of these points.

    `slowdown` is how much longer a second of work takes after 10 seconds of work. All images need 8 to 20 seconds.
    """

    def run(points: Sequence[str], *, slowdown: float) -> dict[str, Any]:
        now_s = done_s = 0.0

        def work(seconds: float) -> None:
            nonlocal now_s, done_s
            now_s += seconds * (1 + slowdown * (done_s + seconds / 2) / 10)
            done_s += seconds

        monkeypatch.setattr("fluxexp.models.fake.time.sleep", work)
        monkeypatch.setattr(HostClock, "mark", lambda self: now_s)
        configs = [SweepPoint([point], compose(*SMALL, *point.split())) for point in points]
        outcomes = run_sweep(configs, Address.of(tmp_path))
        assert [outcome.status for outcome in outcomes] == ["complete"] * len(points)
        (file,) = tmp_path.glob("*sweep*/sweep.json")
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    return run


@pytest.fixture
def in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the images of each point one after the other, as before points were interleaved."""

    def blocks(shard: Sequence[int], kind_of: Any, sample_of: Any) -> Sequence[int]:
        return sorted(shard, key=lambda task: (-kind_of(task).cost, repr(kind_of(task).name)))

    monkeypatch.setattr("fluxexp.experiment.pool.interleaved", blocks)


def costs(sweep_json: dict[str, Any]) -> list[float]:
    return [point["cost"]["device_s_per_image"] for point in sweep_json["points"]]


SHIFTS = ["scheduler.shift=1", "scheduler.shift=2", "scheduler.shift=3"]


def test_equal_points_have_equal_costs_on_a_device_that_slows_down(sweep: Sweep) -> None:
    found = costs(sweep(SHIFTS, slowdown=2))
    assert max(found) < 1.03 * min(found)


@pytest.mark.usefixtures("in_blocks")
def test_blocks_of_points_would_have_different_costs(sweep: Sweep) -> None:
    found = costs(sweep(SHIFTS, slowdown=2))
    assert max(found) > 1.3 * min(found)


def test_costs_are_proportional_to_steps_and_have_intervals(sweep: Sweep) -> None:
    found = sweep([f"sampling.steps={steps}" for steps in (1, 2, 4, 8)], slowdown=2)
    first = costs(found)[0]
    assert costs(found) == pytest.approx([first, 2 * first, 4 * first, 8 * first], rel=0.05)
    for point in found["points"]:
        cost = point["cost"]
        assert cost["device_s_low"] < cost["device_s_per_image"] < cost["device_s_high"]
    assert found["warnings"] == []


def test_points_that_share_batches_have_the_same_cost(sweep: Sweep) -> None:
    found = sweep([f"sampling.steps={s} sampling.guidance={g}" for s in (1, 2) for g in (1, 9)], slowdown=2)
    one, other, dear, dearer = (point["cost"] for point in found["points"])
    assert one == other
    assert dear == dearer
    assert dear["device_s_per_image"] > one["device_s_per_image"]


@pytest.mark.usefixtures("in_blocks")
def test_fewer_steps_that_cost_more_are_a_warning(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    found = sweep([f"sampling.steps={s} sampling.guidance={g}" for s in (9, 10) for g in (1, 9)], slowdown=2)
    (warning,) = found["warnings"]
    assert warning.startswith("steps=9 costs ")
    assert "more than steps=10" in warning
    assert warning in capsys.readouterr().out
