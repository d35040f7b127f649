"""Tells the process that started this one where the results are: `fluxexp.run` and `fluxexp.sweep` read it.

Only the program knows the directory, because its name is a hash of everything that changes pixels.
"""

from __future__ import annotations

import os
from pathlib import Path

from fluxexp.address import Address

RESULT_FILE = "FLUXEXP_RESULT_FILE"
"""Environment variable with the file that gets a line for each run, or for the sweep as a whole."""


def note_result(address: Address) -> None:
    """Rank 0 says where the run or the sweep is, before it is made. Without `RESULT_FILE`, nothing happens."""
    if file := os.environ.get(RESULT_FILE):
        with Path(file).open("a", encoding="utf-8", errors="surrogateescape") as notes:
            notes.write(f"{address}\n")


def noted_results(file: Path) -> list[Address]:
    """What the program noted in `file`; nothing if it ended before that."""
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    return [Address.of(line) for line in dict.fromkeys(lines) if line]
