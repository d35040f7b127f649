"""One engine in a process of its own: loads it, measures its cases, and says each figure as a line of JSON.

A process for each engine, because compiled code, attention backends and memory pools outlive the model they were for.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

MARK = "@@"
"""Begins a line that is meant for the parent."""


def main(order: Mapping[str, Any]) -> None:
    """Do what the parent asks for.

    Args:
        order: engine, cases, repeats, whether to watch the device, whether the model is the full-size one, how much of
            a GPU's memory to leave free before it is loaded, and when the process was started (seconds since the
            epoch).
    """
    import torch

    from fillspeed.arithmetic import matmul_flops
    from fillspeed.cases import Case
    from fillspeed.engine import make_engine
    from fillspeed.measure import measure

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    imported_s = time.time()
    ballast = None
    if order["free_gib"] is not None:
        free_bytes, _ = torch.cuda.mem_get_info(device)
        ballast = torch.empty(max(0, free_bytes - int(order["free_gib"] * 2**30)), dtype=torch.uint8, device=device)
    cases = [Case.from_json(values) for values in order["cases"]]
    pixels = max(height * width for case in cases for height, width in case.sizes)
    engine = make_engine(order["engine"], order["is_full_size"], device, pixels)
    if device.type == "cuda":
        torch.cuda.synchronize()
    say(
        kind="loaded",
        import_s=imported_s - order["started_s"],
        load_s=time.time() - imported_s,
        notes=engine.notes,
        matmul_tflops=matmul_flops(device) / 1e12,
    )
    for row in measure(order["engine"], engine, cases, order["repeats"], order["watch"]):
        if ballast is not None and row.peak_gib is not None:
            row = replace(row, peak_gib=row.peak_gib - ballast.numel() / 2**30)
        say(kind="row", row=row.to_json())
    say(kind="done", notes=engine.notes)


def say(**values: Any) -> None:
    """Tell the parent."""
    print(MARK, json.dumps(values), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
