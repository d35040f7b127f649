"""Runs one engine in its own process: loads it, measures its cases, and writes each result as a line of JSON.

Each engine has its own process, because compiled code, attention backends and memory pools stay in a process after the
model for which they were made.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

MARK = "@@"
"""Prefix of the lines for the parent process."""


def main(request: Mapping[str, Any]) -> None:
    """Run the request of the parent process.

    Args:
        request: `engine`, `model` (its name in `MODELS`), `cases`, `repeats`, `watch` (whether to measure waiting),
            `is_full_size` (whether to use the full-size model), `has_second_pass` (whether images are made with a
            negative prompt), `free_gib` (GPU memory to leave free before loading, or null), and `started_s` (start of
            the process, in seconds since the epoch).
    """
    import torch

    from imagespeed.arithmetic import matmul_flops
    from imagespeed.cases import Case
    from imagespeed.engine import make_engine
    from imagespeed.measure import measure
    from imagespeed.models import MODELS

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    imported_s = time.time()
    ballast = None  # takes the memory that a smaller GPU would not have
    if request["free_gib"] is not None:
        free_bytes, _ = torch.cuda.mem_get_info(device)
        ballast = torch.empty(max(0, free_bytes - int(request["free_gib"] * 2**30)), dtype=torch.uint8, device=device)
    cases = [Case.from_json(values) for values in request["cases"]]
    pixels = max(height * width for case in cases for height, width in case.sizes)
    model, has_second_pass = MODELS[request["model"]], request["has_second_pass"]
    engine = make_engine(request["engine"], model, request["is_full_size"], device, pixels, has_second_pass)
    if device.type == "cuda":
        torch.cuda.synchronize()
    say(
        kind="loaded",
        import_s=imported_s - request["started_s"],
        load_s=time.time() - imported_s,
        notes=engine.notes,
        matmul_tflops=matmul_flops(device) / 1e12,
    )
    for row in measure(request["engine"], engine, cases, request["repeats"], request["watch"]):
        if ballast is not None and row.peak_gib is not None:
            row = replace(row, peak_gib=row.peak_gib - ballast.numel() / 2**30)
        say(kind="row", row=row.to_json())
    say(kind="done", notes=engine.notes)


def say(**values: Any) -> None:
    """Send a message to the parent process."""
    print(MARK, json.dumps(values), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
