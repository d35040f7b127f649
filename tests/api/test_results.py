"""`fluxexp.load` on results of fluxexp 0.1 and on damaged ones, and its frames."""

from __future__ import annotations

import builtins
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fluxexp
from fluxexp.errors import StorageError
from fluxexp.storage.local_store import LocalStore
from fluxexp.storage.open_store import STORES

FIXTURES = Path(__file__).parents[1] / "fixtures" / "results_0_1"
RUN = FIXTURES / "outputs" / "old_run-ca101845cccf02da"
SWEEP = FIXTURES / "multirun" / "old_sweep-sweep-f873a92c135e056d"


def loaded_run(place: Path = RUN) -> fluxexp.RunResult:
    result = fluxexp.load(place)
    assert isinstance(result, fluxexp.RunResult)
    return result


def loaded_sweep(place: Path = SWEEP) -> fluxexp.SweepResult:
    result = fluxexp.load(place)
    assert isinstance(result, fluxexp.SweepResult)
    return result


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the run."""
    return Path(shutil.copytree(RUN, tmp_path / RUN.name))


def test_import_is_cheap_and_complete() -> None:
    program = (
        "import sys, fluxexp; large = {'torch', 'pandas', 'numpy', 'hydra', 'PIL'} & set(sys.modules); "
        "names = [getattr(fluxexp, name) for name in fluxexp.__all__]; "
        "print(sorted(large), {'torch', 'pandas'} & set(sys.modules), set(fluxexp.__all__) <= set(dir(fluxexp)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[] set() True\n"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fluxexp.nothing


def test_a_run() -> None:
    run = loaded_run()
    assert (run.status, run.settings["sampling.steps"], run.summary["num_ok"], run.failed) == ("complete", 2, 3, {})
    assert len(run.records) == len(run.scores) == len(run.images) == 3
    key = next(iter(run.records))
    assert run.image(key).size == run.images[key].size == (128, 128)
    assert run.report == f"{RUN}/report.html"
    assert repr(run) == f"<RunResult {RUN}: complete, 3 images, 0 failed tasks>"
    with pytest.raises(KeyError):
        run.image("nothing")


def test_the_frame_of_a_run() -> None:
    frame = loaded_run().frame()
    assert frame.index.name == "key"
    assert list(frame["image_index"]) == [0, 0, 0]
    assert set(frame["status"]) == {"ok"}
    assert frame["seconds"].gt(0).all()
    assert frame["psnr_hole"].mean() == pytest.approx(20.6336, abs=1e-4)
    assert frame["ms_ssim_hole"].isna().all()  # the images are too small for it
    assert frame["height"].sum() == 3 * 128


def test_a_sweep() -> None:
    sweep = loaded_sweep()
    assert sweep.settings == [{"sampling.steps": 1}, {"sampling.steps": 2}]
    assert sweep.answer is not None
    assert "steps=2" in sweep.answer
    best = sweep.best()
    assert best is not None
    assert best.settings["sampling.steps"] == 2
    frame = sweep.frame()
    assert list(frame["point"]) == [0, 0, 0, 1, 1, 1]
    by_steps = frame.groupby("sampling.steps")["psnr_hole"].mean()
    points = sweep.points_frame()
    assert list(points["psnr_hole"]) == pytest.approx(list(by_steps), abs=1e-3)
    assert frame["ssim_to_reference"].notna().sum() == 3
    assert sweep.image(frame.index[-1]).size == (128, 128)
    assert (sweep.failed, sweep.failed_points, sweep.notes) == ({}, {}, [])


def test_a_point_whose_directory_is_gone(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(SWEEP.parent, tmp_path / "multirun"))
    shutil.rmtree(copy / "old_sweep-cf74317aeb3e8e1d")
    sweep = loaded_sweep(copy / SWEEP.name)
    assert [run is None for run in sweep.runs] == [True, False]
    assert "The directories of these points are gone: 0." in sweep.notes
    assert set(sweep.frame()["point"]) == {1}


def test_a_failed_task_is_a_row_without_scores(copied: Path) -> None:
    manifest = next((copied / "manifest").iterdir())
    first, *rest = manifest.read_text().splitlines()
    failed = first.replace('"status":"ok"', '"status":"failed"').replace('"error":null', '"error":"no such file"')
    start = failed.index('"file":')
    failed = failed[:start] + '"file":null' + failed[failed.index(",", start) :]
    manifest.write_text("\n".join([failed, *rest]) + "\n")
    run = loaded_run(copied)
    ((key, error),) = run.failed.items()
    assert error == "no such file"
    assert run.frame().loc[key, "status"] == "failed"
    assert key not in run.images
    assert len(run.images) == 2
    with pytest.raises(StorageError, match="no image, because the task failed: no such file"):
        run.image(key)


def test_damage_is_a_note_or_names_its_file(copied: Path) -> None:
    (copied / "summary.json").write_text("{")
    run = loaded_run(copied)
    assert run.status == "incomplete"
    assert any("summary.json" in note for note in run.notes)
    key = next(iter(run.records))
    file = copied / str(run.records[key].file)
    file.write_bytes(b"\0" * file.stat().st_size)
    with pytest.raises(StorageError, match=file.name):
        run.image(key)


def test_what_is_no_result_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="there is no such directory"):
        fluxexp.load(tmp_path / "nothing")
    with pytest.raises(StorageError, match=r"it contains old_sweep-.* and 2 others: load one of them"):
        fluxexp.load(SWEEP.parent)
    with pytest.raises(StorageError, match="start the same command again"):
        fluxexp.load(tmp_path)
    with pytest.raises(StorageError, match="no store for ftp://"):
        fluxexp.load("ftp://there/run")


def test_an_address_of_another_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `s3://`: the points of a sweep are found beside it, and errors show the address."""
    monkeypatch.setitem(STORES, "other", lambda address: LocalStore(FIXTURES / address.path))
    sweep = fluxexp.load(f"other://multirun/{SWEEP.name}")
    assert isinstance(sweep, fluxexp.SweepResult)
    assert sweep.report == f"other://multirun/{SWEEP.name}/report.html"
    assert len(sweep.frame()) == 6
    assert sweep.image(sweep.frame().index[0]).size == (128, 128)
    with pytest.raises(StorageError, match="other://multirun is neither a run nor a sweep"):
        fluxexp.load("other://multirun")


def test_without_pandas_a_frame_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_pandas(name: str, *rest: Any) -> Any:
        if name == "pandas":
            raise ModuleNotFoundError("No module named 'pandas'", name="pandas")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_pandas)
    for result in (loaded_run(), loaded_sweep()):
        with pytest.raises(ImportError, match=r"pip install 'fluxexp\[pandas\]'"):
            result.frame()
    assert len(loaded_run().records) == 3
