from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxexp.telemetry import DeviceFigures, Reading
from fluxexp.telemetry.tally import Tally


def tally_of(*readings: Reading, every_s: float = 1.0) -> Tally:
    tally = Tally()
    for number, reading in enumerate(readings):
        tally.add(reading, 100.0 + number * every_s)
    return tally


def test_without_readings_nothing_is_known() -> None:
    assert Tally().figures() == tally_of(Reading()).figures() == DeviceFigures()


def test_all_figures_of_a_gpu() -> None:
    tally = tally_of(
        Reading(
            utilization=1.0, power_w=300.0, energy_j=5000.0, temperature_c=50.0, throttle_reasons=(), memory_gib=9.0
        ),
        Reading(
            sm_activity=0.5, tensor_activity=0.2, power_w=500.0, temperature_c=70.0, throttle_reasons=("power_cap",)
        ),
        Reading(sm_activity=1.0, energy_j=5800.0, temperature_c=65.0, throttle_reasons=("hw_thermal", "power_cap")),
        Reading(utilization=0.5, memory_gib=2.0),
    )
    assert tally.figures() == DeviceFigures(
        utilization_mean=0.75,
        sm_activity_mean=0.75,
        tensor_activity_mean=0.2,
        power_mean_w=400.0,
        energy_j=800.0,
        temperature_peak_c=70.0,
        throttle_reasons=("hw_thermal", "power_cap"),
        memory_peak_gib=9.0,
    )


def test_a_cpu_has_no_figures_of_a_gpu() -> None:
    tally = tally_of(Reading(memory_gib=1.0), Reading(utilization=0.25, memory_gib=2.0))
    assert tally.figures() == DeviceFigures(utilization_mean=0.25, memory_peak_gib=2.0)


def test_means_start_again_and_other_figures_continue() -> None:
    hot = Reading(
        utilization=0.9,
        sm_activity=0.8,
        tensor_activity=0.7,
        power_w=500.0,
        temperature_c=80.0,
        throttle_reasons=("sw_thermal",),
        memory_gib=4.0,
    )
    tally = tally_of(hot, hot)
    tally.restart_means()
    assert tally.figures() == DeviceFigures(
        energy_j=500.0,
        temperature_peak_c=80.0,
        throttle_reasons=("sw_thermal",),
        memory_peak_gib=4.0,
    )


def test_without_a_counter_power_is_integrated_by_trapezoids() -> None:
    tally = tally_of(Reading(power_w=100.0), Reading(power_w=300.0), Reading(), Reading(power_w=100.0), every_s=2.0)
    assert tally.figures().energy_j == 2 * 200 + 4 * 200


def test_one_reading_gives_no_energy() -> None:
    assert tally_of(Reading(energy_j=77.0, power_w=9.0)).figures().energy_j is None


def test_the_counter_has_precedence_over_power() -> None:
    reading = Reading(energy_j=77.0, power_w=400.0)
    assert tally_of(reading, reading).figures().energy_j == 0.0


def test_the_counter_continues_while_readings_fail() -> None:
    assert tally_of(Reading(energy_j=10.0), Reading(), Reading(energy_j=70.0)).figures().energy_j == 60.0


def of_counter(energy_j: float) -> Reading:
    return Reading(energy_j=energy_j)


@given(st.lists(st.floats(0, 1e9), min_size=2))
def test_energy_is_right_after_a_reset_of_the_counter(counter_j: list[float]) -> None:
    before_j, all_j = (tally_of(*map(of_counter, counter_j[:end])).figures().energy_j for end in (-1, None))
    gained = math.fsum(max(0.0, after - before) for before, after in pairwise(counter_j))
    assert all_j == pytest.approx(gained)
    assert all_j is not None
    assert all_j >= (before_j or 0.0)
