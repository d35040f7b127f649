"""Measures whole programs with several processes on a CPU: the recipe under a launcher, and `python -m fluxexp`.

Both programs make the same number of images of the same size. Start-up does not count: the recipe's time begins when
all its processes have made one batch, and fluxexp's time begins when its first rank has finished the warm-up step. Both
times end when the last image file is on disk.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fluxexp.address import Address
from fluxexp.storage.run_directory import RunDirectory
from fluxexp.telemetry import Event

_PORT = "29655"


def recipe_images_per_s(tasks: int, steps: int, batch: int, side: int, processes: int) -> float:
    """Images per second of the recipe, for all processes together."""
    with tempfile.TemporaryDirectory() as directory:
        request = {"tasks": tasks, "steps": steps, "batch": batch, "side": side, "directory": directory}
        _torchrun(["-m", "imagespeed.programs", json.dumps(request)], processes)
        spans = [json.loads(file.read_text()) for file in Path(directory).glob("rank-*.json")]
        assert len(list(Path(directory).glob("*.png"))) == tasks
        return float(tasks / (max(span["end_s"] for span in spans) - min(span["start_s"] for span in spans)))


def fluxexp_images_per_s(tasks: int, steps: int, batch: int, side: int, processes: int) -> float:
    """Images per second of fluxexp, for all ranks together."""
    with tempfile.TemporaryDirectory() as directory:
        overrides = [
            "+experiment=fill",
            f"dataset.length={tasks}",
            f"dataset.height={side}",
            f"dataset.width={side}",
            f"sampling.steps={steps}",
            f"sampling.batch_size={batch}",
            *("parallelism=data", "tracking=disabled", "metrics=none", "report=off", f"output.dir={directory}"),
        ]
        _torchrun(["-m", "fluxexp", *overrides], processes)
        assert len(list(Path(directory).glob("*/images/*.png"))) == tasks
        (run,) = Path(directory).iterdir()
        streams = RunDirectory(Address.of(run)).reader.events(Event.from_json).values()
        events = [event for stream in streams for event in stream]
        start_s = min(event.end_s for event in events if event.warmup)
        return tasks / (max(event.end_s for event in events if event.span == "write") - start_s)


def main(request: dict[str, Any]) -> None:
    """Run one process of the recipe, and write its start and end times to a file."""
    import torch
    from accelerate import PartialState

    from imagespeed.cases import Samples, make_case
    from imagespeed.models import MODELS
    from imagespeed.recipe import Recipe

    case = make_case(str(request["side"]), request["batch"], request["steps"], request["tasks"], request["side"])
    recipe = Recipe("recipe", MODELS["flux_fill"], is_full_size=False, device=torch.device("cpu"))
    state = PartialState()
    samples = Samples.generated(case.sizes, request["tasks"]).samples
    directory = Path(request["directory"])
    with tempfile.TemporaryDirectory() as scratch:
        recipe.make(samples, request["batch"] * state.num_processes, case, request["batch"], Path(scratch))
    state.wait_for_everyone()
    start_s = time.time()
    recipe.make(samples, len(samples), case, request["batch"], directory)
    span = {"start_s": start_s, "end_s": time.time()}
    (directory / f"rank-{state.process_index}.json").write_text(json.dumps(span))
    state.destroy_process_group()


def _torchrun(arguments: list[str], processes: int) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    own = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join([own, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*command, "--master-port", _PORT, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-2000:])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
