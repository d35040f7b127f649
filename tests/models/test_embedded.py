"""The embedded models have the classes of FLUX, and make images that match their captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import fluxexp
from fluxexp.data.shapes import Scene, draw_scene
from fluxexp.metrics.shape_reading import ShapeReading, read_object
from fluxexp.models.base import Job, ModelInput
from fluxexp.models.flux1.flux1_model import Flux1Model
from tests.models.conftest import Load, point

EMBEDDED = Path(fluxexp.__file__).parent / "embedded"
SCENES = [draw_scene(0, index, 128, 128) for index in range(16)]
"""Scenes of a series that training never uses."""


def weights(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*.safetensors") if not file.is_symlink())


def test_embedded_weights_stay_small() -> None:
    assert weights(EMBEDDED / "tiny_fill") <= 12e6
    assert weights(EMBEDDED / "tiny_dev") <= 8e6


@pytest.mark.parametrize("name", ["tiny_fill", "tiny_dev"])
def test_every_component_has_the_class_that_flux_has(load: Load, name: str) -> None:
    pipeline = load(name).pipeline
    classes = {part: type(getattr(pipeline, part)).__name__ for part in pipeline.config if part[0] != "_"}
    assert classes == {
        "scheduler": "FlowMatchEulerDiscreteScheduler",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "T5EncoderModel",
        "tokenizer": "CLIPTokenizer",
        "tokenizer_2": "T5Tokenizer",
        "transformer": "FluxTransformer2DModel",
        "vae": "AutoencoderKL",
    } | ({"image_encoder": "NoneType", "feature_extractor": "NoneType"} if name == "tiny_dev" else {})
    assert pipeline.transformer.config.guidance_embeds


def test_the_autoencoder_preserves_a_scene(load: Load) -> None:
    vae = load("tiny_fill").vae
    truths = torch.from_numpy(np.stack([scene.truth for scene in SCENES])).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.inference_mode():
        restored = vae.decode(vae.encode(truths).latent_dist.mode()).sample.clamp(-1, 1)
    errors = (restored - truths).square().mean(dim=(1, 2, 3))
    assert (10 * torch.log10(4 / errors)).mean() > 30


def fill(model: Flux1Model, prompts: Sequence[str], steps: int = 8) -> list[NDArray[np.uint8]]:
    inputs = [
        ModelInput(
            prompt=prompt,
            height=128,
            width=128,
            image=Image.fromarray(scene.masked_scene),
            mask=Image.fromarray(scene.mask),
        )
        for prompt, scene in zip(prompts, SCENES, strict=True)
    ]
    return paint(model, inputs, 30.0, steps)


def paint(model: Flux1Model, inputs: list[ModelInput], guidance: float, steps: int = 8) -> list[NDArray[np.uint8]]:
    conditionings: list[Any] = model.condition(inputs, None)
    jobs = [Job(conditioning, point(steps, guidance), seed) for seed, conditioning in enumerate(conditionings)]
    return [np.asarray(image) for image in model.decode(model.denoise(jobs)).images()]


def readings(pictures: Sequence[NDArray[np.uint8]]) -> list[ShapeReading]:
    return [read_object(picture, scene.mask) for picture, scene in zip(pictures, SCENES, strict=True)]


def adherence(found: Sequence[ShapeReading], asked: Sequence[Scene]) -> tuple[int, int]:
    """How many images have the color, and how many the shape, that the caption names."""
    pairs = list(zip(found, asked, strict=True))
    return (
        sum(reading.color == scene.traits["color"] for reading, scene in pairs),
        sum(reading.shape == scene.traits["shape"] for reading, scene in pairs),
    )


@pytest.mark.slow
def test_the_masked_region_matches_the_caption(load: Load) -> None:
    model = load("tiny_fill")
    color, shape = adherence(readings(fill(model, [scene.caption for scene in SCENES])), SCENES)
    assert color >= 15
    assert shape >= 12


@pytest.mark.slow
def test_more_steps_match_the_caption_better_than_one_step(load: Load) -> None:
    model, captions = load("tiny_fill"), [scene.caption for scene in SCENES]
    one, eight = (adherence(readings(fill(model, captions, steps=steps)), SCENES) for steps in (1, 8))
    assert sum(eight) > sum(one)


@pytest.mark.slow
def test_a_different_caption_gives_a_different_object(load: Load) -> None:
    others = SCENES[5:] + SCENES[:5]
    found = readings(fill(load("tiny_fill"), [scene.caption for scene in others]))
    color, shape = adherence(found, others)
    assert color >= 14
    assert shape >= 11
    assert adherence(found, SCENES)[0] <= 5


@pytest.mark.slow
def test_without_a_caption_matches_are_by_chance(load: Load) -> None:
    color, shape = adherence(readings(fill(load("tiny_fill"), [""] * len(SCENES))), SCENES)
    assert color <= 8
    assert shape <= 8


@pytest.mark.slow
def test_text_to_image_draws_the_named_object(load: Load) -> None:
    inputs = [ModelInput(prompt=scene.caption, height=128, width=128) for scene in SCENES]
    pictures = paint(load("tiny_dev"), inputs, 3.5)
    found = [read_object(p, color=s.traits["color"]) for p, s in zip(pictures, SCENES, strict=True)]
    color, shape = adherence(found, SCENES)
    assert color >= 14
    assert shape >= 7, "chance is 1 or 2"


@pytest.mark.parametrize(("height", "width"), [(64, 96), (160, 128), (256, 256)])
def test_other_sizes_run(load: Load, height: int, width: int) -> None:
    scene = draw_scene(0, 0, height, width)
    item = ModelInput(
        prompt=scene.caption,
        height=height,
        width=width,
        image=Image.fromarray(scene.masked_scene),
        mask=Image.fromarray(scene.mask),
    )
    (picture,) = paint(load("tiny_fill"), [item], 30.0)
    unmasked = scene.mask == 0
    assert picture.shape == (height, width, 3)
    difference = np.abs(picture[unmasked].astype(int) - scene.truth[unmasked]).mean()
    assert difference < 12, "the unmasked region stays close to the scene"
