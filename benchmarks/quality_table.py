"""The figures of `optimization_quality.py` as a table: for the terminal, and as Markdown for docs/optimization.md.

python benchmarks/quality_table.py FILE
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_HEAD = (
    "model",
    "option",
    "steps",
    "batch",
    "full steps",
    "PSNR mean, worst",
    "SSIM mean, worst",
    "wrong, right",
    "gate",
)


def main() -> None:
    """Print the file on the command line as Markdown."""
    print("\n".join(markdown(json.loads(Path(sys.argv[1]).read_text())["rows"])))


def text(report: Mapping[str, Any]) -> list[str]:
    """The lines for the terminal."""
    cells = [_HEAD, *_cells(report["rows"])]
    widths = [max(len(row[place]) for row in cells) for place in range(len(_HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    limit = report["psnr_limit_db"]
    return [
        f"{report['samples']} samples, {report['dtype']}, {report['device']}, {report['wall_s']:.0f} s",
        f"compared with optimization={report['reference']} at the same steps and batch size",
        *lines,
        *(f"{model} {option}: skipped: {reason}" for (model, option), reason in _skipped(report["rows"]).items()),
        "wrong, right: samples whose result no longer, or only now, has the requested color and shape",
        f"gate: verdicts of PSNR (mean from {limit:g} dB on), SSIM (from 0.99 on), adherence (at most 0.03 less)",
        "LPIPS needs weights that are not part of fluxexp, so it is not measured",
    ]


def markdown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of a Markdown table for each model: a row for each option, a column for steps and batch size."""
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        cells = {(row["option"], _column(row)): _cell(row) for row in rows if row["model"] == model}
        columns = list(dict.fromkeys(column for _, column in cells))
        lines += ["", f"| `{model}` | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
        for option in dict.fromkeys(option for option, _ in cells):
            lines.append(f"| `{option}` | {' | '.join(cells[option, column] for column in columns)} |")
    return lines[1:]


def _column(row: Mapping[str, Any]) -> str:
    return f"{row['steps']} steps, batch {row['batch_size']}"


def _cell(row: Mapping[str, Any]) -> str:
    """Mean and worst PSNR, flips, and the first letters of the verdicts."""
    if row["skipped"] is not None:
        return "not available"
    if row["identical"]:
        return "identical"
    letters = "".join(row[f"{name}_verdict"][0].upper() for name in ("psnr", "ssim", "adherence"))
    psnr = f"{row['psnr_mean']:.1f}, {row['psnr_worst']:.1f} dB"
    return f"{psnr}; {row['flips_to_wrong']} / {row['flips_to_right']}; {letters}"


def _cells(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        if row["skipped"] is not None:
            continue
        full = row["steps"] if row["computed_steps"] is None else row["computed_steps"]
        verdicts = [row[f"{name}_verdict"] for name in ("psnr", "ssim", "adherence")]
        yield (
            row["model"],
            row["option"],
            str(row["steps"]),
            str(row["batch_size"]),
            f"{full:.1f}",
            "identical" if row["identical"] else f"{row['psnr_mean']:.1f}, {row['psnr_worst']:.1f} dB",
            "" if row["identical"] else f"{row['ssim_mean']:.4f}, {row['ssim_worst']:.4f}",
            f"{row['flips_to_wrong']}, {row['flips_to_right']}",
            ", ".join(verdicts),
        )


def _skipped(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    return {(row["model"], row["option"]): row["skipped"] for row in rows if row["skipped"] is not None}


if __name__ == "__main__":
    main()
