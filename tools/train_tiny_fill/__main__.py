"""Generates scenes, trains, distills and exports. A stage whose checkpoint exists is loaded, not trained again."""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tools.train_tiny_fill.architecture import make_dev_transformer, make_fill_transformer, make_vae
from tools.train_tiny_fill.autoencoder import encode_scenes, train_autoencoder
from tools.train_tiny_fill.distill import distill, make_student
from tools.train_tiny_fill.export import export
from tools.train_tiny_fill.flow import prepare, train_flow
from tools.train_tiny_fill.progress import Log
from tools.train_tiny_fill.scenes import Drawing
from tools.train_tiny_fill.settings import PRESETS, Settings
from tools.train_tiny_fill.text import Captions, TextEncoders


def main() -> None:
    """Train both models."""
    arguments = _parse()
    settings = _settings(arguments)
    _check_checkpoints(arguments.out / "checkpoints", settings)
    _describe(arguments.out, settings)
    torch.manual_seed(settings.seed)
    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.enable_cudnn_sdp(False)  # its backward pass failed on these shapes
    drawing = Drawing(settings.seed, settings.scenes, settings.size, settings.workers)
    try:
        _train(settings, drawing, arguments.out, arguments.until)
    finally:
        drawing.close()


def _train(settings: Settings, drawing: Drawing, out: Path, until: str | None) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    log = Log(out / "log.jsonl")
    vae, text = make_vae().to(device), TextEncoders().to(device)
    teachers = {"fill": make_fill_transformer().to(device), "dev": make_dev_transformer().to(device)}
    log.write("sizes", **{name: _size(module) for name, module in {"vae": vae, "text": text, **teachers}.items()})

    checkpoints = out / "checkpoints"
    _stage(checkpoints, {"vae": vae}, lambda: train_autoencoder(settings, vae, drawing, log))
    if until == "vae":
        return
    scenes = drawing.all()
    log.write("scenes", count=len(scenes))
    captions, posteriors = Captions(scenes, device), encode_scenes(vae, scenes)
    log.write("latents", scale=vae.config.scaling_factor, shift=vae.config.shift_factor)
    del scenes

    for transformer in teachers.values():
        prepare(transformer, settings.compile)
    trained = {"text": text, "fill_teacher": teachers["fill"], "dev_teacher": teachers["dev"]}
    _stage(checkpoints, trained, lambda: train_flow(settings, text, teachers, posteriors, captions, log))
    if until == "flow":
        return
    students = {name: make_student(teacher) for name, teacher in teachers.items()}
    distilled = {f"{name}_student": student for name, student in students.items()}
    _stage(checkpoints, distilled, lambda: distill(settings, text, teachers, students, posteriors, captions, log))
    export(out / "models", vae, text, students)
    log.write("done")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.train_tiny_fill", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory for the log, checkpoints and models")
    parser.add_argument(
        "--preset", choices=PRESETS, default="full", help="full: training on a GPU; cpu: short test of all stages"
    )
    parser.add_argument("--seed", type=int, help="seed of scenes and training; 0 is reserved for evaluation")
    parser.add_argument(
        "--steps",
        type=int,
        nargs=3,
        metavar=("VAE", "FLOW", "DISTILL"),
        help="number of steps of each stage (default: those of the preset)",
    )
    parser.add_argument("--no-graphs", action="store_true", help="train without CUDA graphs, which is slower")
    parser.add_argument("--until", choices=("vae", "flow"), help="stop after this stage; run again to continue")
    return parser.parse_args()


def _settings(arguments: argparse.Namespace) -> Settings:
    settings = PRESETS[arguments.preset]
    if arguments.seed is not None:
        settings = dataclasses.replace(settings, seed=arguments.seed)
    stages = {name: getattr(settings, name) for name in ("vae", "flow", "distill")}
    for index, (name, stage) in enumerate(stages.items()):
        steps = arguments.steps[index] if arguments.steps else stage.steps
        stages[name] = dataclasses.replace(stage, steps=steps, graph=not arguments.no_graphs)
    settings = dataclasses.replace(settings, **stages)
    if settings.seed == 0:
        raise SystemExit(
            "--seed 0 is reserved: dataset=shapes and the evaluation use the scenes of series 0. Choose another seed."
        )
    return settings


def _stage(directory: Path, modules: dict[str, nn.Module], train: Callable[[], None]) -> None:
    """Load `modules` if all their checkpoints exist. Otherwise train and save them."""
    files = {name: directory / f"{name}.safetensors" for name in modules}
    if all(file.is_file() for file in files.values()):
        for name, module in modules.items():
            module.load_state_dict(load_file(files[name]), strict=False)
            _restore_config(module, files[name])
        return
    train()
    directory.mkdir(parents=True, exist_ok=True)
    for name, module in modules.items():
        save_file(_distinct(module), files[name])
        _save_config(module, files[name])


def _check_checkpoints(directory: Path, settings: Settings) -> None:
    """Write the settings beside the checkpoints. Exit if checkpoints of other settings exist."""
    file = directory / "settings.json"
    own = json.loads(json.dumps(dataclasses.asdict(settings)))
    if file.is_file() and json.loads(file.read_text()) != own:
        raise SystemExit(
            f"{directory} contains checkpoints of other settings: choose another --out, or remove the directory"
        )
    directory.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(own))


def _distinct(module: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters by name. A shared parameter, which has two names, appears once."""
    return {name: value.detach().contiguous() for name, value in module.named_parameters()}


def _save_config(module: Any, file: Path) -> None:
    """Save the config values that training sets beside the checkpoint."""
    if hasattr(module, "config"):
        file.with_suffix(".json").write_text(json.dumps({k: module.config[k] for k in _LEARNED if k in module.config}))


def _restore_config(module: Any, file: Path) -> None:
    if hasattr(module, "config"):
        module.register_to_config(**json.loads(file.with_suffix(".json").read_text()))


_LEARNED = ("scaling_factor", "shift_factor")


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _describe(directory: Path, settings: Settings) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    facts = {
        "started": time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime()),
        "settings": dataclasses.asdict(settings),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    with (directory / "runs.jsonl").open("a") as file:
        file.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
