"""Scores and comparisons of real runs, compared with independent computations in numpy."""

from __future__ import annotations

import html
import json
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import trim_mean

from fluxexp.data.shapes import draw_scene
from fluxexp.records import Record
from tests.program import Done, Program, Sweep

SIZE = 48
SAMPLES = 8
COMMON = (
    f"dataset.height={SIZE}",
    f"dataset.width={SIZE}",
    f"dataset.limit={SAMPLES}",
    "tracking=disabled",
)


def score_lines(directory: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line) for file in (directory / "scores").glob("*.jsonl") for line in file.read_text().splitlines()
    ]


def pictures(run: Done) -> dict[int, np.ndarray]:
    """Resulting images as float64, by the number of the scene."""
    return {
        int(record.sample_key.rsplit("-", 1)[1]): np.asarray(Image.open(run.directory / str(record.file))).astype(float)
        for record in run.records.values()
    }


def hole_psnr(picture: np.ndarray, scene: int) -> float:
    drawn = draw_scene(0, scene, SIZE, SIZE)
    inside = drawn.mask == 255
    error = (picture[inside] - drawn.truth[inside]) ** 2
    return float(10 * np.log10(255**2 / error.mean()))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return Program(tmp_path_factory.mktemp("scores")).sweep(
        *COMMON, "sampling.steps=1,3", "cost.usd_per_gpu_hour=36", "metrics.quality=psnr_hole", processes=2
    )


def test_every_image_is_scored_once(sweep: Sweep) -> None:
    assert sweep.returncode == 0, sweep.stderr
    for steps in (1, 3):
        run = sweep.run(f"sampling.steps={steps}")
        lines = score_lines(run.directory)
        assert sorted(line["key"] for line in lines) == sorted(run.records)
        assert run.summary["scoring"]["num_scored"] == 2 * SAMPLES, "those of the whole sweep"


def test_the_terminal_names_the_phases_and_ends_with_the_answer(sweep: Sweep) -> None:
    lines = sweep.stdout.splitlines()
    phases = [line[:10].rstrip() for line in lines if not line.startswith(("warming up", "report     /"))]
    assert [name for name in phases if name in ("loading", "generating", "scoring", "report")][:3] == [
        "loading",
        "generating",
        "scoring",
    ]
    assert f"scoring    {2 * SAMPLES} images" in lines
    assert lines[-2] == f"answer     {sweep.summary['answer']['sentence']}"
    assert lines[-1].startswith("results in ")


def test_scores_equal_values_computed_from_the_images(sweep: Sweep) -> None:
    run = sweep.run("sampling.steps=3")
    expected = {scene: hole_psnr(picture, scene) for scene, picture in pictures(run).items()}
    keys = {key: int(record.sample_key.rsplit("-", 1)[1]) for key, record in run.records.items()}
    for line in score_lines(run.directory):
        assert line["metrics"]["psnr_hole"] == pytest.approx(expected[keys[line["key"]]], rel=1e-5)
        assert line["metrics"]["max_difference_kept"] == 0, "the unmasked region does not change"
    told = run.summary["scores"]["psnr_hole"]
    assert told["mean"] == pytest.approx(np.mean(list(expected.values())), rel=1e-5)
    assert told["num"] == SAMPLES
    assert told["low"] < told["mean"] < told["high"]


def test_a_sweep_compares_its_points_on_the_same_samples(sweep: Sweep) -> None:
    few, many = (pictures(sweep.run(f"sampling.steps={steps}")) for steps in (1, 3))
    differences = [hole_psnr(few[scene], scene) - hole_psnr(many[scene], scene) for scene in few]
    summary = sweep.summary
    (comparison,) = summary["comparisons"]
    places = {point["settings"]["sampling.steps"]: place for place, point in enumerate(summary["points"])}
    assert (comparison["point"], comparison["baseline"]) == (places[1], places[3])
    found = comparison["metrics"]["psnr_hole"]
    assert found["difference"] == pytest.approx(np.mean(differences), abs=1e-4)
    assert found["win_rate"] == pytest.approx(np.mean(np.array(differences) > 0))
    changed = comparison["changed_most"][0]
    assert abs(changed["difference"]) == pytest.approx(max(map(abs, differences)), abs=1e-4)


def test_points_have_distances_from_their_reference(sweep: Sweep) -> None:
    few, many = (pictures(sweep.run(f"sampling.steps={steps}")) for steps in (1, 3))
    expected = []
    for scene in few:
        inside = draw_scene(0, scene, SIZE, SIZE).mask == 255
        expected.append(10 * np.log10(255**2 / ((few[scene] - many[scene])[inside] ** 2).mean()))
    by_steps = {point["settings"]["sampling.steps"]: point for point in sweep.summary["points"]}
    assert by_steps[1]["distance"]["psnr_to_reference"]["mean"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert by_steps[3]["distance"] == {}, "it is the reference"
    assert by_steps[3]["reference"] is None


@pytest.fixture(scope="module")
def sweep_without_truths(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    program = Program(tmp_path_factory.mktemp("no-truths"))
    (program.cwd / "prompts.csv").write_text("prompt,size\n" + "".join(f"{n},{SIZE}\n" for n in range(SAMPLES)))
    return program.sweep(
        *("dataset=prompts", "dataset.path=prompts.csv", "model=fake", "model.seconds_per_step=[0.02]"),
        *("sampling.steps=1,2,3", "sampling.guidance=1,8", "tracking=disabled", "output.paste=false"),
    )


def test_without_truths_references_take_part(sweep_without_truths: Sweep) -> None:
    """A reference has the distance of identical images from itself, and each guidance has its own answer."""
    assert sweep_without_truths.returncode == 0, sweep_without_truths.stderr
    summary = sweep_without_truths.summary
    assert summary["judged_by"] == "ssim_to_reference"
    points = summary["points"]
    assert [point["distance"]["ssim_to_reference"]["num"] for point in points] == [SAMPLES] * 6
    references = {number for number, point in enumerate(points) if point["reference"] is None}
    assert {points[number]["settings"]["sampling.steps"] for number in references} == {3}
    assert {points[number]["settings"]["sampling.guidance"] for number in references} == {1, 8}
    for number in references:
        assert points[number]["distance"]["ssim_to_reference"]["mean"] == 1
    groups = summary["answer"]["groups"]
    assert {group["reference"] for group in groups} == references, "an answer for each guidance"
    for group in groups:
        assert points[group["closest"]]["reference"] == group["reference"]
        assert points[group["cheapest"]]["settings"]["sampling.steps"] == 1, "the fake model's steps change nothing"
        assert group["decided"]
        assert f"Closest to {_label(points[group['reference']])}: " in group["sentence"]
    assert (summary["answer"]["best"], summary["answer"]["cheapest"]) == (None, None)
    assert "best" not in summary["answer"]["sentence"]
    page = (sweep_without_truths.directory / "report.html").read_text()
    text = html.unescape(page)
    assert all(group["sentence"].split(". ")[0] in text for group in summary["answer"]["groups"])


def _label(point: dict[str, Any]) -> str:
    settings = point["settings"]
    return f"steps={settings['sampling.steps']} guidance={settings['sampling.guidance']:g}"


def test_the_report_shows_the_numbers_of_the_summary(sweep: Sweep) -> None:
    """The text of the page, as a browser shows it without scripts."""
    page = html.unescape((sweep.directory / "report.html").read_text())
    text = " ".join(re.sub(r"<[^>]*>", " ", re.sub(r"(?s)<(script|style).*?</\1>", " ", page)).split())
    assert sweep.summary["answer"]["sentence"] in text
    for steps in (1, 3):
        run = sweep.run(f"sampling.steps={steps}")
        mean = np.mean([hole_psnr(picture, scene) for scene, picture in pictures(run).items()])
        seconds = next(p for p in sweep.summary["points"] if p["settings"]["sampling.steps"] == steps)["cost"]
        assert re.search(rf"steps\s{steps} Show {mean:.1f} .*? {seconds['device_s_per_image']:.3g}", text), (
            "a row of its points"
        )
        own = html.unescape((run.directory / "report.html").read_text())
        assert f"{mean:.1f}" in own


def batch_mean(records: list[Record], stage: str) -> float:
    """Trimmed mean over the batches with the usual number of images. A batch is what has the same rank and seconds."""
    batches = {(r.rank, r.seconds["condition"], r.seconds["denoise"], r.seconds["decode"]): r for r in records}
    images = Counter(r.batch_size or 0 for r in records)
    usual = max(images, key=lambda size: (images[size], size))
    values = [r.seconds[stage] for r in batches.values() if r.batch_size == usual]
    return float(trim_mean(values, 0.2))


def test_cost_equals_that_of_the_records(sweep: Sweep) -> None:
    runs = {steps: sweep.run(f"sampling.steps={steps}") for steps in (1, 3)}
    everything = [record for run in runs.values() for record in run.records.values()]
    conditioned_s = sum(record.seconds["condition"] for record in everything) / SAMPLES
    points = {point["settings"]["sampling.steps"]: point for point in sweep.summary["points"]}
    decode_s = batch_mean(everything, "decode")
    for steps, run in runs.items():
        cost = points[steps]["cost"]
        seconds = batch_mean(list(run.records.values()), "denoise") + decode_s + conditioned_s
        assert cost["device_s_per_image"] == pytest.approx(seconds, rel=1e-4)
        assert cost["images_per_hour_per_device"] == pytest.approx(3600 / seconds, rel=1e-4)
        assert cost["usd_per_image"] == pytest.approx(seconds * 36 / 3600, rel=1e-4)
        assert cost["joules_per_image"] is None, "energy is unknown on a CPU"
    assert sweep.summary["judged_by"] == "psnr_hole"
    assert sweep.summary["answer"]["sentence"].startswith("steps=")


def score(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return Program(cwd).run_module("fluxexp.score", *arguments)


@pytest.mark.slow
def test_scoring_works_later_and_again_and_with_damaged_results(program: Program) -> None:
    run = program.run(*COMMON, "model=fake", "metrics=none", "report=off")
    assert run.returncode == 0, run.stderr
    assert run.summary["scores"] == {}
    records = (run.directory / "manifest").iterdir()
    before = {file.name: file.read_bytes() for file in records}
    damaged = sorted((run.directory / "images").iterdir())[0]
    picture = damaged.read_bytes()
    damaged.write_bytes(b"no picture".ljust(len(picture)))  # of the same size: another size would count as not made

    done = score(run.directory.parent, str(run.directory), "metrics=basic")
    assert done.returncode == 1, "one could not be scored"
    assert f"scoring    {SAMPLES} images" in done.stdout
    (line,) = [line for line in score_lines(run.directory) if line.get("errors")]
    assert line["key"] == damaged.stem
    assert "cannot identify image" in line["errors"]["psnr_hole"]
    assert run.summary["scores"]["adherence"]["num"] == SAMPLES - 1

    damaged.write_bytes(picture)
    done = score(run.directory.parent, str(run.directory), "metrics=basic")
    assert done.returncode == 0, done.stderr
    assert "scoring    1 images" in done.stdout, "only failed scores are computed again"
    assert run.summary["scores"]["adherence"]["num"] == SAMPLES
    assert {file.name: file.read_bytes() for file in (run.directory / "manifest").iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "nowhere is not the directory of a run"),
        ((".", "metrics.quality=psnrhole"), "did you mean 'psnr_hole'?"),
        ((".", "metrics.quality=hole_change"), "neither direction is better"),
        ((".", "sampling.steps=4"), "has no effect on scoring"),
    ],
)
def test_errors_say_what_to_do(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    done = score(tmp_path, *arguments)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
