"""The results of ranks: through the coordinator, and as the values of summary.json."""

from __future__ import annotations

import json

from fluxexp.experiment.session_messages import HEARTBEAT, RESULT, Heartbeat, RankResult, RunPart
from fluxexp.experiment.summary import rank_figures
from fluxexp.parallel.coordinator import LocalCoordinator
from fluxexp.telemetry import DeviceFigures, RankFigures, Totals

TOTALS = Totals(
    num_images=4,
    num_failed=1,
    busy_s=8.0,
    wait_s=1.0,
    load_s=5.0,
    steal_s=0.5,
    warmup_s=1.5,
    stages={"denoise": 8.00004, "wait": 1.0},
    batch_size_mean=2.5,
    work=600.0,
    work_s=6.0,
    until_s=119.0,
)
BUSY = RankResult(
    rank=0,
    device="GPU",
    finished_s=120.0,
    totals=TOTALS,
    device_figures=DeviceFigures(
        utilization_mean=0.9, power_mean_w=300.0, energy_j=200.0, throttle_reasons=("power_cap",), memory_peak_gib=3.0
    ),
    num_stolen=2,
    runs=(
        RunPart(
            totals=Totals(num_images=1, busy_s=2.0),
            energy_j=50.0,
            applied_optimizations=("fp8",),
            skipped_optimizations={"graphs": "no GPU"},
            error="disk full",
        ),
    ),
)
IDLE = RankResult(rank=1, device="GPU", finished_s=110.0, error="no such file")


def test_results_and_heartbeats_pass_through_the_coordinator_unchanged() -> None:
    zero, one = LocalCoordinator.group(2)
    RESULT.publish_own(zero, BUSY)
    RESULT.publish_own(one, IDLE)
    assert RESULT.wait_all(one) == {0: BUSY, 1: IDLE}
    heartbeat = Heartbeat(1.0, RankFigures(totals=TOTALS, utilization=None, memory_gib=3.0, finished_s=None))
    HEARTBEAT.publish_own(zero, heartbeat)
    assert HEARTBEAT.read_all(one) == {0: heartbeat}


def test_the_figures_of_ranks_have_the_documented_keys() -> None:
    figures = rank_figures({1: IDLE, 0: BUSY}, start_s=100.0)
    assert json.loads(json.dumps(figures)) == figures
    assert (figures["wall_s"], figures["images_per_s"], figures["warmup_s"], figures["world_size"]) == (20, 0.5, 1.5, 2)
    busy, idle = figures["ranks"]
    assert busy == {
        "rank": 0,
        "device": "GPU",
        "num_images": 4,
        "num_failed": 1,
        "num_stolen": 2,
        "busy_s": 8.0,
        "wait_s": 1.0,
        "steal_s": 0.5,
        "load_s": 5.0,
        "warmup_s": 1.5,
        "stages": {"denoise": 8.0, "wait": 1.0},
        "batch_size_mean": 2.5,
        "images_per_s": 0.5,
        "work_per_s": 100.0,
        "relative_speed": None,
        "utilisation_mean": 0.9,
        "sm_activity_mean": None,
        "tensor_activity_mean": None,
        "power_mean_w": 300.0,
        "energy_j": 200.0,
        "temperature_peak_c": None,
        "throttle_reasons": ["power_cap"],
        "memory_peak_gib": 3.0,
        "lost_telemetry": {},
        "error": None,
        "idle_s": 0.0,
        "joules_per_image": 50.0,
    }
    assert list(idle) == list(busy)
    assert (idle["idle_s"], idle["error"], idle["joules_per_image"]) == (10.0, "no such file", None)


def test_the_result_for_one_run_has_its_part_of_the_totals_and_of_the_energy() -> None:
    result = BUSY.of_run(0)
    assert (result.rank, result.totals.num_images, result.num_stolen, result.error) == (0, 1, None, "disk full")
    assert result.device_figures.energy_j == 50.0
    assert result.device_figures.utilization_mean == 0.9


def test_a_rank_that_failed_before_its_work_has_the_same_result_for_each_run() -> None:
    assert IDLE.of_run(3) is IDLE
