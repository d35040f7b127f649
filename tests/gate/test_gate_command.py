"""`python -m fluxexp.gate`: exit codes, the table, JSON, JUnit, and errors."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fluxexp.gate import __main__ as gate_main
from fluxexp.gate.gate_files import error_junit
from tests.gate.conftest import NUM_SAMPLES, config_of
from tests.gate.made_runs import make_run, score
from tests.program import FAKE, Program

Gate = Callable[..., tuple[int, str, str]]


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Gate:
    """`gate(candidate, reference, ...)`: exit code, output and errors."""

    def called(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gate", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdout", stdout := io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True))
        monkeypatch.setattr(sys, "stderr", stderr := io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True))
        with pytest.raises(SystemExit) as ended:
            gate_main.main()
        out, err = (stream.buffer.getvalue().decode() for stream in (stdout, stderr))
        capsys.readouterr()
        return int(str(ended.value.code)), out, err

    return called


@pytest.fixture
def scored(two_runs: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """Copies of two runs, for scores of the test."""
    return tuple(Path(shutil.copytree(run, tmp_path / run.name / "copy")) for run in two_runs)  # type: ignore[return-value]


def give_scores(runs: tuple[Path, Path], loss: float, metric: str = "ssim_hole") -> None:
    slow = [0.8 + 0.001 * (number % 7) for number in range(NUM_SAMPLES)]
    score(runs[1], metric, slow)
    score(runs[0], metric, [value - loss + 0.001 * (number % 3) for number, value in enumerate(slow)])


@pytest.mark.parametrize(
    ("loss", "tolerance", "code", "verdict"),
    [(0.002, 0.01, 0, "pass"), (0.05, 0.01, 1, "fail"), (0.0011, 0.0001, 2, "undecided")],
)
def test_the_exit_code_is_the_verdict(
    gate: Gate, scored: tuple[Path, Path], tmp_path: Path, loss: float, tolerance: float, code: int, verdict: str
) -> None:
    give_scores(scored, loss)
    files = tmp_path / "gate.json", tmp_path / "gate.xml"
    found = gate(*scored, "--metric", "ssim_hole", "--tolerance", tolerance, "--json", files[0], "--junit", files[1])
    assert (found[0], found[2]) == (code, "")
    assert found[1].splitlines()[-1].startswith(f"{verdict.upper()}: ")
    values = json.loads(files[0].read_text())
    assert (values["verdict"], values["error"], values["images"]["num_pairs"]) == (verdict, None, NUM_SAMPLES)
    (one,) = values["metrics"]
    assert (one["metric"], one["verdict"], one["tolerance"], one["limit"]) == (
        "ssim_hole",
        verdict,
        tolerance,
        -tolerance,
    )
    assert one["value"] == pytest.approx(0.00099 - loss, abs=1e-5)
    assert one["low"] < one["value"] < one["high"]
    assert (one["num_samples_needed"] is not None) == (verdict == "undecided")
    assert (scored[0] / one["worst"]["candidate_file"]).is_file()
    assert (scored[1] / one["worst"]["reference_file"]).is_file()
    if verdict == "undecided":
        (told,) = re.findall(r"About ([\d,]+) samples would decide", found[1])
        assert 1 <= int(told.replace(",", "")) / one["num_samples_needed"] < 1.1
    suite = check_junit(files[1].read_bytes())
    images, metric = suite.findall("testcase")
    assert (images.get("name"), metric.get("name"), list(images)) == ("images", "ssim_hole", [])
    assert [child.tag for child in metric] == {"pass": [], "fail": ["failure"], "undecided": ["skipped"]}[verdict]


def check_junit(content: bytes) -> ET.Element:
    """The suite of a JUnit file, after a check of names, attributes and counts (junit-10.xsd of Jenkins)."""
    root = ET.fromstring(content)
    assert (root.tag, [child.tag for child in root]) == ("testsuites", ["testsuite"])
    (suite,) = root
    assert set(root.attrib) <= {"name", "time", "tests", "failures", "errors"}
    assert set(suite.attrib) <= {"name", "tests", "failures", "errors", "skipped", "time", "timestamp"}
    assert [child.tag for child in suite][-1] == "system-out"
    cases = suite.findall("testcase")
    assert suite.get("tests") == str(len(cases))
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert suite.get(attribute) == str(sum(case.find(tag) is not None for case in cases))
    for case in cases:
        assert {"classname", "name", "time"} == set(case.attrib)
        for child in case:
            assert child.tag in ("failure", "error", "skipped")
            assert set(child.attrib) <= {"message", "type"}
            assert child.get("message")
    return suite


@given(st.text())
def test_junit_is_well_formed_for_any_text(text: str) -> None:
    root = ET.fromstring(error_junit(text, 1.0))
    assert root.find("testsuite/testcase/error") is not None


def test_json_on_the_standard_output_leaves_nothing_else_there(gate: Gate, scored: tuple[Path, Path]) -> None:
    give_scores(scored, 0.002)
    code, out, err = gate(*scored, "--metric", "ssim_hole", "--json", "-")
    assert (code, json.loads(out)["verdict"]) == (0, "pass")
    assert "PASS" in err


def test_without_a_metric_the_quality_metric_counts(gate: Gate, scored: tuple[Path, Path]) -> None:
    give_scores(scored, 0.05)
    assert gate(*scored)[0] == 1
    assert gate(*scored, "--tolerance", "0.1")[0] == 0


def test_without_a_metric_one_whose_scores_are_all_null_does_not_count(gate: Gate, scored: tuple[Path, Path]) -> None:
    for run in scored:  # as for samples of a folder, which have no color and shape
        score(run, "adherence", [None] * NUM_SAMPLES)
    code, _, err = gate(*scored)
    assert (code, "ssim_to_reference" in err, "fluxexp.score" in err) == (65, True, True)
    score(scored[0], "ssim_hole", [0.8] * NUM_SAMPLES)
    code, _, err = gate(*scored)
    assert (code, f"fluxexp.score {scored[0]}" in err, f"fluxexp.score {scored[1]}" in err) == (65, False, True)
    score(scored[1], "ssim_hole", [0.8] * NUM_SAMPLES)
    code, out, _ = gate(*scored)
    assert code == 0
    assert "SSIM, masked" in out


def test_no_value_is_minus_zero(gate: Gate, scored: tuple[Path, Path]) -> None:
    for run in scored:
        score(run, "seam", [1.0] * NUM_SAMPLES)
    code, out, _ = gate(*scored, "--metric", "seam", "--tolerance", "0", "--json", "-")
    assert (code, "-0.0" in out) == (2, False)
    assert not re.search(r"-0\s", gate(*scored, "--metric", "seam", "--tolerance", "0")[1])


def test_each_metric_has_its_tolerance(gate: Gate, scored: tuple[Path, Path], tmp_path: Path) -> None:
    for metric in ("ssim_hole", "psnr_hole"):
        give_scores(scored, 0.05, metric)
    file = tmp_path / "gate.json"
    code, out, _ = gate(*scored, "--metric", "ssim_hole", "--tolerance", "0.2", "--metric", "psnr_hole", "--json", file)
    assert (code, [one["tolerance"] for one in json.loads(file.read_text())["metrics"]]) == (0, [0.2, 0.3])
    assert "SSIM, masked is worse by at most 0.2 and PSNR, masked is worse by at most 0.3 dB" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "required: REFERENCE"),
        (("x", "--metric", "lpip"), "did you mean 'lpips'"),
        (("x", "--metric", "fid"), "compares sets of images"),
        (("x", "--metric", "hole_change"), "neither direction is better"),
        (("x", "--metric", "psnr_to_reference"), "no default tolerance"),
        (("x", "--metric", "seam", "--metric", "seam"), "given twice"),
        (("x", "--metric", "seam", "--tolerance", "1", "--tolerance", "2"), "seam has two tolerances"),
        (("x", "--tolerance", "1", "--metric", "seam"), "after the --metric that it belongs to"),
        (("x", "--metric", "seam", "--tolerance", "-1"), "from 0 on"),
        (("x", "--metric", "seam", "--tolerance", "nan"), "from 0 on"),
        (("x", "--level", "95"), "below 1"),
    ],
)
def test_a_wrong_command_has_its_own_exit_code(gate: Gate, arguments: tuple[str, ...], said: str) -> None:
    code, out, err = gate("candidate", *arguments)
    assert (code, out) == (64, "")
    assert said in err


def test_runs_that_cannot_be_compared(gate: Gate, two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    run = two_runs[0]
    other_noise = make_run(config_of("dataset.length=2", "sampling.seed=1"), tmp_path)
    other_samples = make_run(config_of("dataset.length=2", "dataset.seed=5"), tmp_path)
    sweep = tmp_path / "s-sweep-1"
    sweep.mkdir()
    point = {"directory": other_noise.name, "status": "complete", "error": None}
    (sweep / "sweep.json").write_text(json.dumps({"points": [point], "version": 1}))
    for candidate, said in (
        (tmp_path / "nothing", "not the directory of a run"),
        (sweep, f"is a sweep. Give the directory of one of its points:\n  {other_noise}"),
        (other_noise, "different noise (sampling.seed=1 and 0)"),
        (other_samples, "no sample in common: shapes-5-"),
        (
            run,
            f"{NUM_SAMPLES} of {NUM_SAMPLES} images in {run} have no score lpips. Run: python -m fluxexp.score {run} ",
        ),
    ):
        files = tmp_path / "error.json", tmp_path / "error.xml"
        code, out, err = gate(candidate, run, "--metric", "lpips", "--json", files[0], "--junit", files[1])
        assert (code, out) == (65, "")
        assert said in err
        values = json.loads(files[0].read_text())
        assert values["verdict"] == "error"
        assert said in values["error"]
        assert check_junit(files[1].read_bytes()).get("errors") == "1"


def test_failed_tasks_never_pass(gate: Gate, two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    failing = make_run(config_of(f"dataset.length={NUM_SAMPLES}", "model.fail_every=7"), tmp_path)
    file = tmp_path / "gate.xml"
    code, out, _ = gate(failing, two_runs[1], "--metric", "ssim_to_reference", "--junit", file)
    assert code == 1
    assert "only in the reference" in out
    assert "tasks failed in the candidate that have an image in the reference (shapes-" in out
    assert "ssim_to_reference" not in out.splitlines()[-1], "the images that are there are identical"
    images, metric = check_junit(file.read_bytes()).findall("testcase")
    assert images.find("failure") is not None
    assert list(metric) == []
    code, out, _ = gate(two_runs[1], failing, "--metric", "ssim_to_reference")
    assert (code, "only in the candidate" in out) == (0, True), "a reference that fails says nothing against it"


def test_images_that_are_still_to_be_made_leave_it_undecided(
    gate: Gate, two_runs: tuple[Path, Path], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(two_runs[1], tmp_path / "copy"))
    sorted((copy / "images").iterdir())[0].unlink()
    code, out, _ = gate(copy, two_runs[1], "--metric", "ssim_to_reference")
    assert code == 2
    assert "1 images of the candidate are not made yet" in out
    smaller = make_run(config_of("dataset.length=10"), tmp_path)
    code, out, _ = gate(smaller, two_runs[1], "--metric", "ssim_to_reference")
    assert (code, f"{NUM_SAMPLES - 10} only in the reference" in out) == (0, True), "nobody asked for more images"


def test_a_damaged_image_is_named(gate: Gate, two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(two_runs[1], tmp_path / "copy"))
    image = sorted((copy / "images").iterdir())[0]
    image.write_bytes(bytes(image.stat().st_size))
    code, _, err = gate(copy, two_runs[1], "--metric", "ssim_to_reference")
    assert code == 65
    assert str(image) in err


def test_images_of_other_sizes_have_no_distance(gate: Gate, two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(two_runs[0], tmp_path / "copy"))
    image = sorted((copy / "images").iterdir())[0]
    size = image.stat().st_size
    small = io.BytesIO()
    Image.new("RGB", (8, 8)).save(small, "jpeg", quality=10)
    image.write_bytes(small.getvalue().ljust(size, b"\0"))
    code, _, err = gate(copy, two_runs[0], "--metric", "ssim_to_reference")
    assert (code, "8 x 8 and 32 x 32 pixels" in err) == (65, True)


def test_an_unexpected_error_is_not_a_verdict(
    gate: Gate, two_runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(gate_main, "read_pairs", broken)
    code, _, err = gate(*two_runs)
    assert code == 70
    assert "RuntimeError: a bug" in err


def test_a_file_that_cannot_be_written_is_an_error(gate: Gate, two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    code, _, err = gate(two_runs[1], two_runs[1], "--metric", "ssim_to_reference", "--json", tmp_path / "no" / "file")
    assert (code, "cannot be written" in err) == (65, True)


@pytest.mark.slow
def test_real_processes(program: Program) -> None:
    common = [option for option in FAKE if option != "metrics=none"]
    runs = [program.run(*common, "dataset.length=9", f"output.format={name}") for name in ("jpeg", "png")]
    directories = [str(run.directory) for run in runs]
    done = program.run_module("fluxexp.gate", *directories, "--metric", "ssim_hole", "--tolerance", "0.5")
    assert (done.returncode, done.stdout.splitlines()[-1][:5]) == (0, "PASS:"), done.stderr
    done = program.run_module("fluxexp.gate", *directories, "--metric", "psnr_to_reference", "--tolerance", "99")
    assert done.returncode == 1
    assert program.run_module("fluxexp.gate", directories[0], "nowhere").returncode == 65
    command = [sys.executable, "-m", "fluxexp.gate", directories[1], directories[1], "--json", "-"]
    cold = program.run_command(command)
    assert (cold.returncode, json.loads(cold.stdout)["identical"]) == (0, True), cold.stderr
