"""Executes the notebooks in examples/, and stores their outputs (`make notebooks`).

    python -m tools.notebooks [FILE ...]

Each notebook works in an empty directory. Times of execution and other values that change with every execution are
left out of the file.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parent.parent / "examples"
_LIMIT_S = 600


def execute(source: Path, target: Path) -> None:
    """Execute the notebook `source` with the kernel of this Python, and write it with its outputs to `target`.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell has failed.
    """
    notebook: Any = nbformat.read(source, as_version=4)  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory(prefix="fluxexp-") as folder:
        client = NotebookClient(
            notebook,
            timeout=_LIMIT_S,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        client.execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
    nbformat.write(notebook, target)  # type: ignore[no-untyped-call]


def main() -> None:
    """Execute the given notebooks, by default all of them."""
    parser = argparse.ArgumentParser(prog="python -m tools.notebooks", description=__doc__)
    parser.add_argument("file", type=Path, nargs="*", help="a notebook (default: all in examples/)")
    for file in parser.parse_args().file or sorted(EXAMPLES.glob("*.ipynb")):
        execute(file, file)
        print(f"{file}: {file.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
