"""The notebooks in examples/ have outputs, and docs/python.md says what is true."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tools.notebooks import EXAMPLES, execute

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
_MAX_BYTES = 300_000


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: str(file.stem))
def test_a_stored_notebook_was_executed_and_names_no_machine(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert file.stat().st_size < _MAX_BYTES
    assert not [place for place in ("/home/", "/tmp/", "/root/", "/work/", " on vm") if place in text]
    notebook: Any = nbformat.read(file, as_version=4)  # type: ignore[no-untyped-call]
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run `make notebooks`"
    assert sum(bool(cell.outputs) for cell in code) >= len(code) // 2
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


def test_there_are_two_notebooks() -> None:
    assert len(NOTEBOOKS) == 2


@pytest.mark.slow
def test_a_notebook_can_be_executed(tmp_path: Path) -> None:
    execute(EXAMPLES / "my_photos_as_a_dataframe.ipynb", tmp_path / "made.ipynb")
    made: Any = nbformat.read(tmp_path / "made.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    assert any("image/png" in out.get("data", {}) for cell in made.cells for out in cell.get("outputs", ()))


def test_the_examples_in_the_docs_are_true(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = doctest.testfile(str(ROOT / "docs" / "python.md"), module_relative=False)
    assert found.attempted > 5
    assert found.failed == 0


def test_the_reference_in_the_docs_names_what_there_is() -> None:
    from fluxexp import RunResult, SweepResult

    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    for result in (RunResult, SweepResult):
        public = [name for name in vars(result) if not name.startswith("_")]
        assert public
        assert not [name for name in public if f"`{name}" not in text]
