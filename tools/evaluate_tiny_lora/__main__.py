"""Evaluates the embedded LoRAs on held-out scenes, with fluxexp's own inference code, and prints a report.

The scenes are series 0 of `dataset=shapes`. Training uses another series.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from fluxexp.config.optimization_catalog import NONE
from fluxexp.config.schema import NO_FILES, FluxModelConfig
from fluxexp.data.shapes import Scene, draw_scene
from fluxexp.data.shapes.outline import outlines
from fluxexp.data.shapes.styles import STYLES
from fluxexp.imports import large_imports
from fluxexp.metrics.outlines import dilate
from fluxexp.metrics.shape_reading import read_object
from fluxexp.models.base import Job, Model, ModelInput
from fluxexp.records import LoraUse, Point
from tools.evaluate_tiny_fill.scoring import Pixels, psnr

SIZE = 128
"""Side of the scenes, in pixels."""
STYLE_SCALES = (0.0, 0.5, 1.0, 1.5)
CONTROL_SCALES = (0.0, 0.5, 1.0)


def main() -> None:
    """Evaluate the LoRAs, and print the report."""
    arguments = _parse()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scenes = [draw_scene(0, index, SIZE, SIZE) for index in range(arguments.scenes)]
    print(f"{len(scenes)} held-out scenes, {SIZE} x {SIZE}, {device.type}, float32, {arguments.steps} steps")
    if "styles" in arguments.parts:
        _print_styles(_load("tiny_fill", "flux_fill", device), scenes, arguments)
    if "control" in arguments.parts:
        _print_control(_load("tiny_dev", "flux_control", device), scenes, arguments)


def _print_styles(model: Model, scenes: Sequence[Scene], arguments: argparse.Namespace) -> None:
    print(f"\ntiny_fill with a style, guidance {arguments.guidance:g}; PSNR (dB) and colors in the masked region")
    print("LoRA            scale   PSNR to styled truth   PSNR to plain truth   color right   shape right")
    inputs = [
        ModelInput(
            prompt=scene.caption,
            height=SIZE,
            width=SIZE,
            image=Image.fromarray(scene.masked_scene),
            mask=Image.fromarray(scene.mask),
        )
        for scene in scenes
    ]
    for style in STYLES:
        styled = [draw_scene(0, index, SIZE, SIZE, style).truth for index in range(len(scenes))]
        for scale in STYLE_SCALES:
            uses = (LoraUse(f"embedded:tiny_{style}", scale),)
            pictures = list(_paint(model, inputs, uses, arguments.guidance, arguments))
            to_styled, to_plain = (
                np.mean([psnr(p[s.mask > 0], t[s.mask > 0]) for p, s, t in zip(pictures, scenes, truths, strict=True)])
                for truths in (styled, [scene.truth for scene in scenes])
            )
            readings = [read_object(p, s.mask) for p, s in zip(pictures, scenes, strict=True)]
            color = np.mean([r.color == s.traits["color"] for r, s in zip(readings, scenes, strict=True)])
            shape = np.mean([r.shape == s.traits["shape"] for r, s in zip(readings, scenes, strict=True)])
            start = f"tiny_{style:10} {scale:5.1f} {to_styled:22.2f} {to_plain:21.2f}"
            print(f"{start} {color:13.1%} {shape:13.1%}", flush=True)


def _print_control(model: Model, scenes: Sequence[Scene], arguments: argparse.Namespace) -> None:
    print(f"\ntiny_dev with tiny_control, guidance {arguments.control_guidance:g}, captions of whole scenes")
    print("edges: F1 of the outlines of the result and those of the control image, matched within 1 pixel")
    print("scale   edges   PSNR to the scene   color right   shape right")
    inputs = [
        ModelInput(
            prompt=scene.traits["scene"],
            height=SIZE,
            width=SIZE,
            control_image=Image.fromarray(outlines(scene.truth)),
        )
        for scene in scenes
    ]
    for scale in CONTROL_SCALES:
        uses = (LoraUse("embedded:tiny_control", scale),)
        pictures = list(_paint(model, inputs, uses, arguments.control_guidance, arguments))
        pairs = list(zip(pictures, scenes, strict=True))
        edges = np.mean([edge_agreement(picture, scene.truth) for picture, scene in pairs])
        similarity = np.mean([psnr(picture, scene.truth) for picture, scene in pairs])
        readings = [read_object(picture, color=scene.traits["color"]) for picture, scene in pairs]
        color = np.mean([r.color is not None for r in readings])
        shape = np.mean([r.shape == s.traits["shape"] for r, s in zip(readings, scenes, strict=True)])
        print(f"{scale:5.1f} {edges:7.3f} {similarity:19.2f} {color:13.1%} {shape:13.1%}", flush=True)


def edge_agreement(picture: Pixels, truth: Pixels) -> float:
    """F1 of the edges of two images, from 0 to 1. An edge matches one at a distance of at most 1 pixel."""
    found, wanted = (outlines(image)[..., 0] > 0 for image in (picture, truth))
    if not found.any() or not wanted.any():
        return 0.0
    right = dilate(np.pad(wanted, 1), 1)[1:-1, 1:-1][found].mean()
    reached = dilate(np.pad(found, 1), 1)[1:-1, 1:-1][wanted].mean()
    return float(2 * right * reached / max(right + reached, 1e-9))


@torch.inference_mode()
def _paint(
    model: Model,
    inputs: Sequence[ModelInput],
    uses: tuple[LoraUse, ...],
    guidance: float,
    arguments: argparse.Namespace,
) -> Iterator[Pixels]:
    point = Point(
        scheduler="flow_match_euler",
        shift=None,
        steps=arguments.steps,
        guidance=guidance,
        seed=0,
        strength=1.0,
        height=None,
        width=None,
        max_sequence_length=None,
        lora=uses,
    )
    for first in range(0, len(inputs), arguments.batch):
        part = [replace(item, lora=uses) for item in inputs[first : first + arguments.batch]]
        jobs = [Job(item, point, first + index) for index, item in enumerate(model.condition(part, None))]
        for image in model.decode(model.denoise(jobs)).images():
            yield np.asarray(image)


def _load(name: str, family: str, device: torch.device) -> Model:
    with large_imports("fluxexp.models.loading.pipeline_loader"):
        from fluxexp.models.loading.pipeline_loader import load_flux
    config = FluxModelConfig(
        family=family,
        name=name,
        path=f"embedded:{name}",
        base=None,
        files=NO_FILES,
        revision=None,
        variant=None,
        sha256=None,
        weights="pretrained",
        layout=None,
        dtype="float32",
        resolution=SIZE,
    )
    return load_flux(config, NONE, device)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.evaluate_tiny_lora", description=__doc__)
    parser.add_argument("parts", nargs="*", default=["styles", "control"], help="styles, control, or both")
    parser.add_argument("--scenes", type=int, default=128, help="number of scenes")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--guidance", type=float, default=30.0, help="guidance of tiny_fill")
    parser.add_argument("--control-guidance", type=float, default=3.5, help="guidance of tiny_dev")
    parser.add_argument("--batch", type=int, default=16, help="batch size")
    parser.add_argument("--threads", type=int, help="threads of torch on a CPU (default: one per core)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
