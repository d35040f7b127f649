"""Draws scenes, trains one or more LoRAs, and writes them with a log and the settings."""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch

from tools.train_tiny_fill.progress import Log
from tools.train_tiny_lora.adapter import save_adapter
from tools.train_tiny_lora.settings import LORAS, LoraSettings
from tools.train_tiny_lora.training import train_lora


def main() -> None:
    """Train the LoRAs that the command line names."""
    arguments = _parse()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    torch.backends.cuda.enable_cudnn_sdp(False)  # its backward pass failed on these shapes
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name in arguments.names:
        settings = _settings(LORAS[name], arguments)
        started = time.monotonic()
        log = Log(arguments.out / f"{name}_log.jsonl")
        transformer = train_lora(settings, arguments.workers, device, log)
        save_adapter(transformer, arguments.out / f"{name}.safetensors")
        _describe(arguments.out / f"{name}_run.json", settings, device, time.monotonic() - started)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.train_tiny_lora", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(LORAS), help=f"LoRAs: {', '.join(LORAS)}")
    parser.add_argument("--out", type=Path, required=True, help="directory for the files")
    parser.add_argument("--seed", type=int, help="seed of scenes and training; 0 is reserved for evaluation")
    parser.add_argument("--steps", type=int, help="number of steps (default: as shipped)")
    parser.add_argument("--scenes", type=int, help="number of scenes (default: as shipped)")
    parser.add_argument("--threads", type=int, help="threads of torch on a CPU (default: one per core)")
    parser.add_argument("--workers", type=int, default=2, help="processes that draw scenes")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in LORAS]:
        parser.error(f"{unknown[0]} is not a LoRA of this project: {', '.join(LORAS)}")
    if arguments.seed == 0:
        parser.error("--seed 0 is reserved: dataset=shapes and the evaluation use the scenes of series 0")
    return arguments


def _settings(settings: LoraSettings, arguments: argparse.Namespace) -> LoraSettings:
    changes: dict[str, Any] = {
        name: value for name in ("seed", "scenes") if (value := getattr(arguments, name)) is not None
    }
    if arguments.steps is not None:
        changes["stage"] = dataclasses.replace(settings.stage, steps=arguments.steps, log_every=1)
    return dataclasses.replace(settings, **changes)


def _describe(file: Path, settings: LoraSettings, device: torch.device, seconds: float) -> None:
    facts = {
        "settings": dataclasses.asdict(settings),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "wall_s": round(seconds, 1),
    }
    file.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
