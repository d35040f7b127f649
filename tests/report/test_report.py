"""Tests of the HTML of reports of whole directories, without a browser."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fluxexp.errors import StorageError
from fluxexp.records import Sample
from fluxexp.report.__main__ import main
from tests.report.fake_directories import NASTY, island_of, make_run, make_samples, make_sweep, report_of


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return make_samples(6)


@pytest.fixture
def run(tmp_path: Path, samples: list[Sample]) -> Path:
    return make_run(tmp_path / "run", samples, failed=1)


def _rows(chart: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The data of a plot."""
    rows: list[dict[str, Any]] = chart["datasets"][chart["data"]["name"]]
    return rows


def test_the_report_of_a_run_shows_every_result_with_its_sample(run: Path) -> None:
    data = island_of(report_of(run).read_text())
    assert [result["status"] for result in data["results"]] == ["ok"] * 5 + ["failed"]
    for result in data["results"][:5]:
        assert result["image"].startswith("data:image/webp;base64,")
        assert (run / result["file"]).is_file()
        assert data["samples"][result["sample"]].keys() >= {"input", "mask", "truth", "prompt"}
    html = (run / "report.html").read_text()
    assert "out</b>" not in html, "the page escapes errors"
    assert "fill: steps 4 \u00b7 guidance 30 \u00b7 seed 0</h1>" in html
    assert html.index('id="gallery-title"') < html.index('id="time-title"'), "images come before timelines"


def test_a_second_report_of_the_same_files_is_identical(run: Path) -> None:
    first = report_of(run).read_bytes()
    assert report_of(run).read_bytes() == first


@pytest.mark.parametrize("missing", ["summary.json", "events", "scores", "overrides.yaml", "images", "manifest"])
def test_the_report_notes_missing_files_and_shows_the_rest(run: Path, missing: str) -> None:
    path = run / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    html = report_of(run).read_text()
    assert "Configuration</h2>" in html
    assert missing == "scores" or 'class="notes"' in html


@pytest.mark.parametrize(
    "damaged", ["summary.json", "config.yaml", "overrides.yaml", "events", "scores", "manifest", "images"]
)
def test_the_report_notes_damaged_files_and_shows_the_rest(run: Path, damaged: str) -> None:
    path = run / damaged
    for file in path.iterdir() if path.is_dir() else [path]:
        file.write_bytes(b'{"\xff\x00: [broken\n' + file.read_bytes()[: len(file.read_bytes()) // 2])
    html = report_of(run).read_text()
    assert "Configuration</h2>" in html
    assert '<aside class="notes"' in html


@pytest.mark.parametrize(
    "values", ["[]", "null", "3", '{"ranks": 3, "scores": [], "balance": 1, "cost": "x", "sweep": 3, "status": 5}']
)
def test_a_summary_with_unexpected_types_is_not_an_error(run: Path, values: str) -> None:
    (run / "summary.json").write_text(values)
    assert "Configuration</h2>" in report_of(run).read_text()


def test_results_are_shown_without_samples_that_no_longer_exist(run: Path) -> None:
    config = (run / "config.yaml").read_text().replace("length: 6", "length: 2")
    (run / "config.yaml").write_text(config)
    data = island_of(report_of(run).read_text())
    assert all(result.get("image") for result in data["results"][:5])
    assert "Samples whose inputs cannot be shown: 4." in (run / "report.html").read_text()


def test_results_can_differ_in_size_from_their_sample_or_have_no_input_image(run: Path, samples: list[Sample]) -> None:
    for file in (run / "images").iterdir():
        Image.new("RGB", (48, 16), "red").save(file)
    config = (run / "config.yaml").read_text()
    (run / "prompts.txt").write_text("a\nb\n")
    head, _, _ = config.partition("dataset:")
    tail = f"dataset: {{kind: prompts, path: {run / 'prompts.txt'}, limit: null}}\nmodel: {{name: tiny}}\n"
    (run / "config.yaml").write_text(head + tail)
    data = island_of(report_of(run).read_text())
    assert all(result.get("image") for result in data["results"] if result["status"] == "ok")


def test_the_report_never_reads_files_outside_of_the_run(run: Path) -> None:
    secret = run.parent / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    (manifest,) = (run / "manifest").iterdir()
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    lines[0]["file"], lines[1]["file"] = "../secret.png", str(secret)
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = island_of(report_of(run).read_text())["results"]
    assert sum("image" in result for result in results) == 3


def test_prompts_with_html_are_escaped(tmp_path: Path, samples: list[Sample]) -> None:
    run = make_run(tmp_path / "run", samples, prompts=NASTY)
    html = report_of(run).read_text()
    assert "<script>alert" not in html
    assert "<img src=x" not in html
    prompts = [sample["prompt"] for sample in island_of(html)["samples"].values()]
    assert prompts[:5] == list(NASTY[:5])


def test_the_report_of_a_sweep_shows_the_answer_and_links_its_points(tmp_path: Path, samples: list[Sample]) -> None:
    sweep = make_sweep(tmp_path, samples)
    html = report_of(sweep).read_text()
    data = island_of(html)
    assert "steps 4 is enough &amp; costs &lt;little&gt;." in html
    assert "no &lt;b&gt;steps&lt;/b&gt;" in html, "a note gives the error of the point that could not start"
    assert data["charts"].keys() >= {"pareto", "heat", "line-ssim_hole", "line-cost", "timeline"}
    assert "line-blank" not in data["charts"], "a metric with the same mean at every point has no plot"
    assert data["columns"] == [0, 1, 2, 3]
    hrefs = [point["href"] for point in data["points"]]
    assert all((sweep / href).is_file() for href in hrefs[:4])
    assert hrefs[4] is None
    assert "fill: steps 1, 4 \u00d7 guidance 1, 30</h1>" in html, "the title names the settings"
    assert "All 5 points" in html
    assert "+experiment=fill sampling.steps=4 sampling.guidance=30" in html
    assert "sampling.steps=0" in html, "also the point that could not start"
    assert "steps 1, 4 \u00b7 guidance 1, 30 \u00b7 seed 0" in html
    assert f'href="../{sweep.name}/report.html"' in (tmp_path / "fill-0000000000000000/report.html").read_text()


def test_the_report_of_a_sweep_shows_verdicts_intervals_of_costs_and_warnings(
    tmp_path: Path, samples: list[Sample]
) -> None:
    sweep = make_sweep(tmp_path, samples)
    values = json.loads((sweep / "sweep.json").read_text())
    values["warnings"] = ["4 steps cost less than 1 <step>"]
    values["answer"] |= {
        "decided": False,
        "ties": [],
        "groups": [],
        "verdicts": [
            {"point": 1, "verdict": "undecided", "rival": 3, "bound": 0.04, "num_samples_needed": 1234},
            {"point": 2, "verdict": "enough", "rival": 3, "bound": 0.01, "num_samples_needed": None},
        ],
    }
    for point in values["points"][:4]:
        cost = point["cost"]["device_s_per_image"]
        point["cost"] |= {"device_s_low": cost * 0.75, "device_s_high": cost * 1.5}
    (sweep / "sweep.json").write_text(json.dumps(values))
    html = report_of(sweep).read_text()
    assert 'class="answer">steps 4 is enough &amp; costs &lt;little&gt;.</p>' in html
    assert html.count("4 steps cost less than 1 &lt;step&gt;") == 1
    assert "undecided, about 1,300 samples would decide" in html
    assert "not decided: see the verdicts" in html
    assert "0.300 to 0.600 s" in html
    charts = island_of(html)["charts"]
    rows = _rows(charts["pareto"])
    assert [(row["cost_low"], row["cost_high"]) for row in rows[2:]] == [(pytest.approx(0.3), pytest.approx(0.6))] * 2
    assert _rows(charts["line-cost"])[3]["high"] == pytest.approx(0.6)
    old = report_of(make_sweep(tmp_path / "old", samples)).read_text()
    assert "Verdict</th>" not in old
    assert "95 % interval</th>" in old


def test_a_sweep_without_truths_has_an_answer_for_each_reference(tmp_path: Path, samples: list[Sample]) -> None:
    sweep = make_sweep(tmp_path, samples)
    values = json.loads((sweep / "sweep.json").read_text())
    sentence = "Closest to steps 4: steps 1."
    groups: list[dict[str, Any]] = [
        {
            "reference": 2 + side,
            "closest": side,
            "cheapest": side,
            "decided": side == 0,
            "ties": [],
            "sentence": sentence,
        }
        for side in (0, 1)
    ]
    values["answer"] = {"best": None, "cheapest": None, "sentence": sentence, "verdicts": [], "groups": groups}
    values["judged_by"] = "psnr_to_reference"
    for number, point in enumerate(values["points"][:4]):
        point |= {"reference": number + 2 if number < 2 else None, "is_pareto": True}
        point["distance"] = {"psnr_to_reference": {"mean": 20 + number, "low": None, "high": None, "num": 6}}
    (sweep / "sweep.json").write_text(json.dumps(values))
    html = report_of(sweep).read_text()
    data = island_of(html)
    assert "Close enough to steps\u00a04 \u00b7 guidance\u00a030" in html
    assert "; not decided" in html
    assert html.count(sentence) == 2, "a sentence for each reference"
    assert [point["chosen"] for point in data["points"]] == [True, True, False, False, False]
    rows = _rows(data["charts"]["pareto"])
    assert [row["group"] for row in rows] == [2, 3, 2, 3], "the points of each reference have a front"
    assert len(_rows(data["charts"]["heat"])) == 4, "the references are in the heat map"


def test_an_old_sweep_without_scores_and_settings_has_a_report(tmp_path: Path, samples: list[Sample]) -> None:
    sweep = make_sweep(tmp_path, samples)
    values = json.loads((sweep / "sweep.json").read_text())
    old = {key: values[key] for key in ("status", "name", "num_points", "num_ok")}
    kept = ("overrides", "directory", "status", "error", "num_tasks", "num_ok")
    old["points"] = [{key: point.get(key) for key in kept} | {"device_s_per_image": 0.1} for point in values["points"]]
    (sweep / "sweep.json").write_text(json.dumps(old))
    data = island_of(report_of(sweep).read_text())
    assert data["points"][0]["label"] == "steps\u00a01 \u00b7 guidance\u00a01"
    assert "line-cost" in data["charts"]
    assert len(data["results"]) == 24


def test_the_report_of_a_damaged_sweep_notes_the_damage(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{")
    assert "cannot be read" in report_of(tmp_path).read_text()
    (tmp_path / "sweep.json").write_text(
        '{"points": [3, {"directory": "../.."}, {"settings": 4, "quality": []}], "answer": 3}'
    )
    assert "point 2" in report_of(tmp_path).read_text()


def test_the_report_notes_that_points_have_different_datasets(tmp_path: Path, samples: list[Sample]) -> None:
    sweep = make_sweep(tmp_path, samples)
    config = tmp_path / "fill-0000000000000002" / "config.yaml"
    config.write_text(config.read_text().replace("length: 6", "length: 7"))
    assert "different datasets" not in report_of(sweep).read_text()
    config.write_text(config.read_text().replace("seed: 0", "seed: 1"))
    assert "different datasets" in report_of(sweep).read_text()


def test_values_of_unexpected_types_are_ignored(run: Path) -> None:
    with (run / "scores" / "a.jsonl").open("a") as stream:
        stream.write('{"key": "x", "metrics": {"ssim_hole": "good", "psnr_hole": NaN}, "version": 1}\n')
    with next((run / "manifest").iterdir()).open("a") as stream:
        stream.write('{"key": 3}\n"word"\n')
    with next((run / "events").iterdir()).open("a") as stream:
        stream.write('{"span": 3, "start_s": 0, "end_s": NaN}\n{"span": "denoise", "start_s": "x", "end_s": 1}\n')
    html = report_of(run).read_text()
    assert "2 damaged lines of the manifest" in html
    assert "2 damaged lines of events" in html


def test_the_command_takes_the_newest_run_or_sweep(
    tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report"])
    with pytest.raises(SystemExit):
        main()
    assert "no finished run" in capsys.readouterr().err
    make_run(tmp_path / "outputs" / "fill-0", samples)
    main()
    captured = capsys.readouterr()
    assert "outputs/fill-0/report.html" in captured.out
    assert "cannot write the contact sheet" in captured.err, "the fake config is not complete"
    sweep = make_sweep(tmp_path / "multirun", samples)
    os.utime(sweep / "sweep.json", (2e9, 2e9))
    main()
    assert f"{sweep.name}/report.html" in capsys.readouterr().out


def test_a_directory_without_run_or_sweep_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="neither the directory of a run nor of a sweep"):
        report_of(tmp_path)


def test_five_hundred_noisy_images_stay_below_ten_megabytes(tmp_path: Path) -> None:
    samples = make_samples(4, side=64)
    run = make_run(tmp_path / "run", samples)
    (manifest,) = (run / "manifest").iterdir()
    line = json.loads(manifest.read_text().splitlines()[0])
    rng = np.random.default_rng(0)
    for index in range(4):
        pixels = rng.integers(0, 255, (160, 160, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(run / f"images/noise{index}.png", compress_level=1)
    lines = [{**line, "key": f"k{n}", "sample_key": f"s{n}", "file": f"images/noise{n % 4}.png"} for n in range(600)]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = report_of(run)
    assert len(island_of(path.read_text())["results"]) == 500
    assert "This page shows 500 of 600 results" in path.read_text()
    assert path.stat().st_size < 10_000_000


def test_help_is_quick_and_imports_no_plots() -> None:
    code = "import sys, fluxexp.report.__main__; print({'altair', 'vl_convert', 'jinja2', 'torch'} & set(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert output == "set()\n"
