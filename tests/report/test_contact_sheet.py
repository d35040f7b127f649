from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fluxexp.errors import StorageError
from fluxexp.report.contact_sheet import contact_sheet
from fluxexp.report.dataset_samples import Samples
from fluxexp.report.pictures import Result, as_data
from fluxexp.storage.local_store import LocalStore
from fluxexp.storage.run_reader import RunReader
from tests.program import FAKE, Program


@pytest.mark.slow
def test_a_sheet_shows_results_beside_their_samples(program: Program) -> None:
    done = program.run(*FAKE, "dataset.limit=3")
    sheet = np.asarray(contact_sheet(RunReader(LocalStore(done.directory)), rows=2, cell_px=32, across=1))
    record = next(iter(done.records.values()))
    assert record.file is not None
    result = np.asarray(Image.open(done.directory / record.file).convert("RGB"))
    found = [
        (top, left)
        for top in range(sheet.shape[0] - 32)
        for left in (8 + 2 * (32 + 8),)
        if np.array_equal(sheet[top : top + 32, left : left + 32], result)
    ]
    assert len(found) == 1, "the third column shows the exact pixels of the result"


def test_the_command_writes_the_sheet_and_prints_the_summary(program: Program) -> None:
    done = program.run(*FAKE, "dataset.limit=2")
    command = [sys.executable, "-m", "fluxexp.report"]
    output = subprocess.run(command, cwd=program.cwd, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "'num_ok': 2" in output
    with Image.open(done.directory / "contact_sheet.png") as image:
        assert image.width > 300


def test_control_images_and_references_are_shown(program: Program) -> None:
    done = program.run(*FAKE, "dataset.limit=2", "dataset.controls=outlines", "dataset.references=scenes")
    reader = RunReader(LocalStore(done.directory))
    sheet = contact_sheet(reader, rows=1, cell_px=32, across=1)
    assert sheet is not None
    assert sheet.width == 6 * (32 + 8) + 2 * 8, "input, control, reference, mask, result and truth"
    record = next(iter(reader.outcomes().values()))
    samples = Samples({"dataset": asdict(reader.config().dataset)})
    (shown,) = as_data([Result(record, reader, "", {})], samples)["samples"].values()
    assert all(shown[name] for name in ("input", "control", "reference", "mask", "truth"))


def test_a_directory_that_is_not_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not the directory of a run"):
        contact_sheet(RunReader(LocalStore(tmp_path)))
