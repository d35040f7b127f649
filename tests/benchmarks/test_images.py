"""Tests of the benchmark's arithmetic, and short runs of the benchmarks."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from fluxexp.config.families import PIPELINE_FAMILIES
from fluxexp.config.model_layouts import FLUX_FILL
from fluxexp.telemetry.events import now_s
from imagespeed.arithmetic import step_flop
from imagespeed.cases import Case, Samples, make_case
from imagespeed.engine import make_engine
from imagespeed.launch import run_child
from imagespeed.models import MODELS
from imagespeed.report import Report
from imagespeed.watch import Observation, Watch, idle_times

CONFIGS = Path(__file__).parents[2] / "conf" / "model"
FAST = ("flux_inpaint", "flux_kontext")
"""Models whose tests are in the default suite: with a strength, and with a second picture. Both make two passes."""
ROW = {
    "engine": "recipe",
    "case": "128x128 b1",
    "batch": 1.0,
    "steps": 2,
    "image_s": [2.0, 4.0],
    "step_s": 0.1,
    "tflops": 300.0,
    "first_batch_s": 9.0,
    "peak_gib": None,
    "waiting": None,
    "waits": [],
    "round": 0,
}


def test_the_operations_of_a_step_follow_from_the_shapes_of_the_layers() -> None:
    """74.39 TFLOP at 1024 x 1024 and 21.50 at 512 x 512, with 512 text tokens."""
    assert step_flop(FLUX_FILL.transformer, 4096, 512) / 1e12 == pytest.approx(74.39, abs=0.005)
    assert step_flop(FLUX_FILL.transformer, 1024, 512) / 1e12 == pytest.approx(21.50, abs=0.005)


def test_an_observation_counts_for_the_time_around_it() -> None:
    observations = [
        Observation(1.0, True, "a"),
        Observation(2.0, False, ""),
        Observation(4.0, True, "b"),
        Observation(5.0, True, "c"),
    ]
    assert idle_times(observations, 0.0, 7.0) == [("a", 1.5), ("b", 1.5), ("c", 2.5)]
    assert idle_times(observations, 1.25, 4.0) == [("a", 0.25), ("b", 1.0)]
    assert idle_times([], 0.0, 1.0) == []


def test_a_watch_measures_idle_time_and_what_the_host_did() -> None:
    has_work = threading.Event()
    with Watch(lambda: not has_work.is_set()) as watch:
        start_s = now_s()
        has_work.set()
        time.sleep(0.05)
        has_work.clear()
        Samples.generated([(256, 256)], 24)
        end_s = now_s()
    fraction, waits = watch.waiting(start_s, end_s)
    assert 0 < fraction < 1
    assert sum(seconds for _, seconds in waits) == pytest.approx(fraction * (end_s - start_s))
    assert any("fluxexp.data.shapes" in activity for activity, _ in waits)


def test_an_error_of_the_watching_thread_is_raised() -> None:
    with pytest.raises(ZeroDivisionError), Watch(lambda: bool(1 // 0)):
        time.sleep(0.02)


def test_stretches_are_whole_batches_and_samples_take_sizes_in_turn() -> None:
    case = make_case("mixed", None, 2, 4, 64)
    assert case.stretch(4) == 8
    assert Case.from_json(json.loads(json.dumps(case.to_json()))) == case
    samples = Samples.generated(case.sizes, 7)
    assert [samples.size(index) for index in range(7)] == [*case.sizes, case.sizes[0]]
    assert len({samples.key(index) for index in range(7)}) == 7


def test_the_report_merges_rounds_and_compares_with_the_first_engine(tmp_path: Path) -> None:
    ours = {**ROW, "engine": "fluxexp:none", "image_s": [1.0]}
    report = Report(tmp_path / "report.json", {}, [{"matmul_tflops": 600.0}], [ROW, {**ROW, "round": 1}, ours])
    report.write()
    first, second = json.loads((tmp_path / "report.json").read_text())["points"]
    assert (first["image_s"], first["of_matmul"], first["first_batch_warm_s"]) == (3.0, 0.5, 9.0)
    assert second["first_batch_warm_s"] is None
    assert "fluxexp:none 3.00" in report.table()


def test_an_engine_that_exceeds_its_time_limit_is_stopped_with_an_error(tmp_path: Path) -> None:
    request = {"engine": "recipe", "model": "flux_fill", "cases": [], "repeats": 1, "is_full_size": False}
    (message,) = run_child(request, 0.1, tmp_path)
    assert message == {"kind": "error", "error": "stopped at the time limit of 0.1 s (--limit)"}


def test_every_family_can_be_measured() -> None:
    measured = {model.family_name for model in MODELS.values()}
    assert measured == set(PIPELINE_FAMILIES)
    for model in MODELS.values():
        assert {f"{name}.yaml" for name in (model.name, model.small)} <= {file.name for file in CONFIGS.iterdir()}
        assert (model.layout(True), model.layout(False)) == (model.family.layouts[0], model.family.layouts[-1])


@pytest.mark.parametrize(
    "name",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in MODELS],
)
def test_recipe_and_fluxexp_do_the_same_work_for_every_family(name: str, tmp_path: Path) -> None:
    """As many evaluations of the transformer, with as many tokens; two passes where the family has them."""
    model, device = MODELS[name], torch.device("cpu")
    case = make_case("64", 2, 2, 2, 64, name, model.takes_second_pass)
    samples = Samples.generated(case.sizes, 2, model).samples
    made = {}
    for engine in ("recipe", "fluxexp:none"):
        folder = tmp_path / engine.replace(":", "-")
        folder.mkdir()
        engine_model = make_engine(engine, model, False, device, 64 * 64, case.has_second_pass)
        seen: list[int] = []
        engine_model.pipeline.transformer.proj_out.register_forward_hook(
            lambda _layer, inputs, _output, seen=seen: seen.append(inputs[0].shape[1])
        )
        engine_model.make(samples, 2, case, 2, folder)  # includes a warm-up step
        seen.clear()
        assert engine_model.make(samples, 2, case, 2, folder).batches == [2]
        made[engine] = seen
    assert set(made["recipe"]) == {model.evaluated_tokens(64, 64)}
    assert made["recipe"] == made["fluxexp:none"]
    assert len(made["recipe"]) == case.passes * case.steps_run


@pytest.mark.slow
@pytest.mark.parametrize("family", ["flux_fill", "flux_kontext"])
def test_the_benchmark_runs_and_writes_its_figures(family: str, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    arguments = ["--quick", "--sizes", "64", "--steps", "1", "--images", "1", "--repeats", "1", "--processes", "0"]
    arguments += ["--engines", "recipe", "fluxexp:auto", "--family", family, "--json", str(file)]
    program = Path(__file__).parents[2] / "benchmarks" / "images.py"
    done = subprocess.run([sys.executable, str(program), *arguments], capture_output=True, text=True, check=True)
    assert "fluxexp:auto" in done.stdout
    figures = json.loads(file.read_text())
    assert figures["family"] == family
    assert [point["engine"] for point in figures["points"]] == ["recipe", "fluxexp:auto"]
    assert all(point["image_s"] > 0 for point in figures["points"])


@pytest.mark.slow
def test_the_start_up_benchmark_compares_with_the_libraries(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    program = Path(__file__).parents[2] / "benchmarks" / "startup.py"
    only_images = ["metrics=none", "report=off", "tracking=disabled"]
    arguments = [*only_images, "--repeats", "1", "--json", str(file)]
    done = subprocess.run([sys.executable, str(program), *arguments], capture_output=True, text=True, check=True)
    figures = json.loads(file.read_text())
    assert 0 < figures["least"]["loaded"] < figures["least"]["warm"]
    assert figures["ratios"]["warm"] == figures["least"]["warm"] / figures["least"]["libraries"]
    assert f"{figures['ratios']['warm']:.2f} to the first batch" in done.stdout
