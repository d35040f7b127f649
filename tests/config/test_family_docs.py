"""docs/models.md has every family, with what its declaration says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fluxexp.config.families import PIPELINE_FAMILIES
from tools import family_docs
from tools.family_docs import rendered

[(PATH, TEXT)] = rendered().items()


def test_the_generated_tables_are_up_to_date() -> None:
    assert PATH.read_text(encoding="utf-8") == TEXT, "run `python -m tools.family_docs`"


@pytest.mark.parametrize("name", PIPELINE_FAMILIES)
def test_each_family_has_a_choice_a_row_and_an_experiment(name: str) -> None:
    assert f"`{name}` " in TEXT
    (row,) = (line for line in TEXT.splitlines() if line.startswith(f"| `{name}` |"))
    assert "`+experiment=" in row


def test_it_is_written_from_the_declarations(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = replace(family_docs._FAMILIES[0], unsupported_optimizations=frozenset({"step_cache"}), appended_pictures=2)
    monkeypatch.setattr(family_docs, "_FAMILIES", (odd,))
    assert "| 12,800 | all but `step_cache` |" in rendered()[PATH]
