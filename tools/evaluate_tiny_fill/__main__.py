"""Evaluates `tiny_fill` and `tiny_dev` on held-out scenes, with fluxexp's own inference code, and prints a report.

Run `python -m tools.evaluate_tiny_fill --models models` from the project's root. The scenes are series 0 of
`dataset=shapes`. Training uses another series.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

import fluxexp
from fluxexp.config.optimization_catalog import NONE
from fluxexp.config.schema import NO_FILES, FluxModelConfig
from fluxexp.data.shapes import Scene, draw_scene
from fluxexp.imports import large_imports
from fluxexp.models.base import Job, ModelInput
from fluxexp.records import Point
from tools.evaluate_tiny_fill.scoring import Pixels, Score, named_objects, psnr, score_fill, score_objects

EMBEDDED = Path(fluxexp.__file__).parent / "embedded"
SERIES = 0
"""Seed of the held-out scenes."""
SIZE = 128
"""Side of the scenes, in pixels."""
STEPS = (1, 2, 4, 8, 16, 28)
FILL_GUIDANCE = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 60.0, 100.0)
DEV_GUIDANCE = (1.0, 2.0, 3.5, 5.0, 8.0, 16.0)


def main() -> None:
    """Evaluate both models, and print the report."""
    arguments = _parse()
    device = torch.device(arguments.device)
    scenes = [draw_scene(SERIES, index, SIZE, SIZE) for index in range(arguments.scenes)]
    with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
        evaluation = Evaluation(scenes, arguments, device, pool)
        print(f"{len(scenes)} held-out scenes, {SIZE} x {SIZE}, {device.type}, {arguments.dtype}\n")
        _print_truths(evaluation)
        fill = _load(arguments.models / "tiny_fill", "flux_fill", arguments.dtype, device)
        _print_reconstruction(evaluation, fill)
        _print_fill(evaluation, fill, arguments)
        dev = _load(arguments.models / "tiny_dev", "flux", arguments.dtype, device)
        _print_dev(evaluation, dev, arguments)


class Evaluation:
    """Generates and scores pictures of the held-out scenes.

    Args:
        scenes: the held-out scenes.
        arguments: the command line.
        device: device of the models.
        pool: processes that score.
    """

    def __init__(
        self, scenes: list[Scene], arguments: argparse.Namespace, device: torch.device, pool: ProcessPoolExecutor
    ) -> None:
        self.scenes = scenes
        self.device = device
        self._batch: int = arguments.batch
        self._pool = pool

    def fill(self, model: Any, prompts: Sequence[str], steps: int, guidance: float) -> list[Pixels]:
        """Fill the masked region of every scene. The unmasked region comes from the truth."""
        inputs = [
            ModelInput(
                prompt=prompt,
                height=SIZE,
                width=SIZE,
                image=Image.fromarray(scene.masked_scene),
                mask=Image.fromarray(scene.mask),
            )
            for scene, prompt in zip(self.scenes, prompts, strict=True)
        ]
        painted = self._paint(model, inputs, steps, guidance)
        return [
            np.where(scene.mask[..., None] > 0, picture, scene.truth)
            for scene, picture in zip(self.scenes, painted, strict=True)
        ]

    def paint(self, model: Any, prompts: Sequence[str], steps: int, guidance: float) -> list[Pixels]:
        """Generate an image for each prompt, without an input image."""
        inputs = [ModelInput(prompt=prompt, height=SIZE, width=SIZE) for prompt in prompts]
        return list(self._paint(model, inputs, steps, guidance))

    def score_fills(self, pictures: Sequence[Pixels], asked: Sequence[tuple[str, str]]) -> list[Score]:
        """Score filled pictures against the truths and the requested (color, shape) of each."""
        truths, masks = [scene.truth for scene in self.scenes], [scene.mask for scene in self.scenes]
        return list(self._pool.map(score_fill, pictures, truths, masks, asked, chunksize=16))

    def score_objects(self, pictures: Sequence[Pixels], asked: Sequence[list[tuple[str, str]]]) -> list[Score]:
        """Score whole pictures: one score for each requested object."""
        parts = self._pool.map(score_objects, pictures, asked, chunksize=16)
        return [score for part in parts for score in part]

    def _paint(self, model: Any, inputs: list[ModelInput], steps: int, guidance: float) -> Iterator[Pixels]:
        point = Point(
            scheduler="flow_match_euler",
            shift=None,
            steps=steps,
            guidance=guidance,
            seed=0,
            strength=1.0,
            height=None,
            width=None,
            max_sequence_length=None,
        )
        for first in range(0, len(inputs), self._batch):
            conditionings = model.condition(inputs[first : first + self._batch], None)
            jobs = [Job(part, point, first + index) for index, part in enumerate(conditionings)]
            for image in model.decode(model.denoise(jobs)).images():
                yield np.asarray(image)


def _print_truths(evaluation: Evaluation) -> None:
    asked = [_truth(scene) for scene in evaluation.scenes]
    scores = evaluation.score_fills([scene.truth for scene in evaluation.scenes], asked)
    print(
        f"scores of the truths themselves: color {_share(scores, 'color')}, shape {_share(scores, 'shape')}, "
        f"overlap {_mean(scores, 'overlap'):.3f}\n"
    )


@torch.inference_mode()
def _print_reconstruction(evaluation: Evaluation, model: Any) -> None:
    values = []
    for first in range(0, len(evaluation.scenes), 64):
        truths = np.stack([scene.truth for scene in evaluation.scenes[first : first + 64]])
        pixels = torch.from_numpy(truths).permute(0, 3, 1, 2).to(evaluation.device, model.dtype) / 127.5 - 1
        restored = model.vae.decode(model.vae.encode(pixels).latent_dist.mode()).sample.float().cpu()
        rounded = ((restored + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).numpy().astype(np.uint8)
        values += [psnr(one, truth) for one, truth in zip(rounded, truths, strict=True)]
    print(f"autoencoder: mean PSNR {np.mean(values):.2f} dB (worst scene {np.min(values):.2f})\n")


def _print_fill(evaluation: Evaluation, model: Any, arguments: argparse.Namespace) -> None:
    captions = [scene.caption for scene in evaluation.scenes]
    asked = [_truth(scene) for scene in evaluation.scenes]
    print(f"tiny_fill, right caption, guidance {arguments.guidance:g}; PSNR and SSIM in the masked region")
    print("steps        PSNR       SSIM   color  shape   both    overlap")
    for steps in arguments.vary_steps:
        scores = evaluation.score_fills(evaluation.fill(model, captions, steps, arguments.guidance), asked)
        print(
            f"{steps:5}   {_mean(scores, 'psnr'):8.2f}   {_mean(scores, 'ssim'):8.3f}   {_adherence(scores)}",
            flush=True,
        )
    wrong = [_wrong_scene(evaluation.scenes, index) for index in range(len(captions))]
    columns = {
        "right": (captions, asked),
        "wrong": ([scene.caption for scene in wrong], [_truth(scene) for scene in wrong]),
        "none": ([""] * len(captions), asked),
    }
    print(f"\ntiny_fill, {arguments.steps} steps; for a wrong caption, color and shape refer to the wrong caption")
    print("guidance caption       PSNR       SSIM   color  shape   both    overlap")
    for caption, (prompts, wanted) in columns.items():
        for guidance in arguments.vary_guidance:
            pictures = evaluation.fill(model, prompts, arguments.steps, guidance)
            scores = evaluation.score_fills(pictures, wanted)
            print(
                f"{guidance:8g} {caption:7}  {_mean(scores, 'psnr'):8.2f}   {_mean(scores, 'ssim'):8.3f}   "
                f"{_adherence(scores)}",
                flush=True,
            )
    print(f"unmasked pixels changed: {_num_changed(evaluation, pictures)}\n")


def _print_dev(evaluation: Evaluation, model: Any, arguments: argparse.Namespace) -> None:
    kinds: dict[Literal["one object", "whole scene"], list[str]] = {
        "one object": [scene.caption for scene in evaluation.scenes],
        "whole scene": [scene.traits["scene"] for scene in evaluation.scenes],
    }
    print("tiny_dev; scores of all objects that the captions name")
    print("caption      steps guidance   color  shape   both    overlap")
    for kind, prompts in kinds.items():
        asked = [named_objects(prompt) for prompt in prompts]
        points = [(arguments.steps, guidance) for guidance in arguments.vary_dev_guidance]
        points += [(steps, arguments.dev_guidance) for steps in arguments.vary_steps]
        for steps, guidance in points:
            scores = evaluation.score_objects(evaluation.paint(model, prompts, steps, guidance), asked)
            print(f"{kind:12} {steps:5} {guidance:8g}  {_adherence(scores)}", flush=True)


def _truth(scene: Scene) -> tuple[str, str]:
    return scene.traits["color"], scene.traits["shape"]


def _wrong_scene(scenes: Sequence[Scene], index: int) -> Scene:
    """The next scene whose target object has another color and another shape."""
    color, shape = _truth(scenes[index])
    following = (scenes[(index + step) % len(scenes)] for step in range(1, len(scenes)))
    return next(scene for scene in following if scene.traits["color"] != color and scene.traits["shape"] != shape)


def _num_changed(evaluation: Evaluation, pictures: Iterable[Pixels]) -> int:
    """Number of unmasked pixels that differ from the truth."""
    return sum(
        int(np.count_nonzero((picture != scene.truth).any(axis=2) & (scene.mask == 0)))
        for picture, scene in zip(pictures, evaluation.scenes, strict=True)
    )


def _adherence(scores: Sequence[Score]) -> str:
    """Fractions with the right color, shape and both, and the mean overlap, as columns of a table."""
    both = sum(score.color and score.shape for score in scores) / len(scores)
    return f"{_share(scores, 'color')}  {_share(scores, 'shape')}  {both:6.1%}  {_mean(scores, 'overlap'):.3f}"


def _share(scores: Sequence[Score], name: str) -> str:
    return f"{np.mean([getattr(score, name) for score in scores]):6.1%}"


def _mean(scores: Sequence[Score], name: str) -> float:
    return float(np.mean([getattr(score, name) for score in scores]))


def _load(path: Path, family: str, dtype: Any, device: torch.device) -> Any:
    with large_imports("fluxexp.models.loading.pipeline_loader"):
        from fluxexp.models.loading.pipeline_loader import load_flux
    config = FluxModelConfig(
        family=family,
        name=path.name,
        path=str(path),
        base=None,
        files=NO_FILES,
        revision=None,
        variant=None,
        sha256=None,
        weights="pretrained",
        layout=None,
        dtype=dtype,
        resolution=SIZE,
    )
    return load_flux(config, NONE, device)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.evaluate_tiny_fill", description=__doc__)
    parser.add_argument("--models", type=Path, default=EMBEDDED, help="directory that contains tiny_fill and tiny_dev")
    parser.add_argument("--scenes", type=int, default=512, help="number of scenes")
    parser.add_argument("--steps", type=int, default=28, help="steps in the tables that vary guidance")
    parser.add_argument("--guidance", type=float, default=30.0, help="guidance of tiny_fill where steps vary")
    parser.add_argument("--dev-guidance", type=float, default=3.5, help="guidance of tiny_dev where steps vary")
    parser.add_argument("--vary-steps", type=int, nargs="+", default=STEPS, help="numbers of steps to compare")
    parser.add_argument(
        "--vary-guidance", type=float, nargs="+", default=FILL_GUIDANCE, help="guidances of tiny_fill to compare"
    )
    parser.add_argument(
        "--vary-dev-guidance", type=float, nargs="+", default=DEV_GUIDANCE, help="guidances of tiny_dev to compare"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, default=64, help="batch size")
    parser.add_argument("--workers", type=int, default=2, help="number of processes that score pictures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
