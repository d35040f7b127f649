"""The embedded LoRAs are what their model card says, and images follow their scales."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fluxexp
from fluxexp.config.lora_files import lora_header
from fluxexp.config.model_paths import EMBEDDED_LORAS, lora_file
from fluxexp.data.shapes import draw_scene
from fluxexp.data.shapes.outline import outlines
from fluxexp.data.shapes.styles import Style
from fluxexp.models.base import Job, ModelInput
from fluxexp.models.flux1.flux1_model import Flux1Model
from fluxexp.records import LoraUse
from tests.models.conftest import Load, point
from tools.evaluate_tiny_fill.scoring import Pixels, psnr
from tools.evaluate_tiny_lora.__main__ import edge_agreement

FOLDER = Path(fluxexp.__file__).parent / "embedded" / "loras"
NUMBER = 4
SCENES = [draw_scene(0, index, 128, 128) for index in range(NUMBER)]
"""Scenes of a series that training never uses."""


def paint(model: Flux1Model, inputs: list[ModelInput], use: LoraUse, guidance: float) -> list[Pixels]:
    conditionings = model.condition([replace(item, lora=(use,)) for item in inputs], None)
    wanted = replace(point(4, guidance), lora=(use,))
    jobs = [Job(conditioning, wanted, seed) for seed, conditioning in enumerate(conditionings)]
    return [np.asarray(image) for image in model.decode(model.denoise(jobs)).images()]


def test_the_files_are_those_of_the_model_card_and_stay_small() -> None:
    card = (FOLDER / "README.md").read_text()
    stated = {name: (int(size.replace(",", "")), digest) for name, size, digest in re.findall(
        r"\| `(\w+)\.safetensors` \| ([\d,]+) \| `([0-9a-f]{64})` \|", card)}  # fmt: skip
    files = {name: lora_file(f"embedded:{name}") for name in EMBEDDED_LORAS}
    assert {file.stem for file in FOLDER.glob("*.safetensors")} == set(files)
    contents = {name: file.read_bytes() for name, file in files.items()}
    assert stated == {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in contents.items()}
    assert sum(map(len, contents.values())) <= 6e6


def test_the_control_lora_has_inputs_for_a_control_image() -> None:
    layers = lora_header("embedded:tiny_control").layers
    assert layers["transformer.x_embedder"].inputs == 128
    assert "transformer.x_embedder" not in lora_header("embedded:tiny_pastel").layers


@pytest.mark.parametrize("style", ["outlined", "pastel"])
def test_more_of_a_style_is_closer_to_the_styled_ground_truth(load: Load, style: Style) -> None:
    model, truths = load("tiny_fill"), [draw_scene(0, index, 128, 128, style).truth for index in range(NUMBER)]
    inputs = [
        ModelInput(
            prompt=scene.caption,
            height=128,
            width=128,
            image=Image.fromarray(scene.masked_scene),
            mask=Image.fromarray(scene.mask),
        )
        for scene in SCENES
    ]
    similarity = []
    for scale in (0.0, 0.5, 1.0):
        pictures = paint(model, inputs, LoraUse(f"embedded:tiny_{style}", scale), 30.0)
        parts = zip(pictures, SCENES, truths, strict=True)
        similarity.append(np.mean([psnr(p[s.mask > 0], truth[s.mask > 0]) for p, s, truth in parts]))
    assert similarity[0] < similarity[1] < similarity[2]
    assert similarity[2] > similarity[0] + 1


def test_with_the_control_lora_the_outlines_are_followed(load: Load) -> None:
    model = load("tiny_dev", family="flux_control")
    inputs = [
        ModelInput(
            prompt=scene.traits["scene"], height=128, width=128, control_image=Image.fromarray(outlines(scene.truth))
        )
        for scene in SCENES
    ]
    without, followed = (
        np.mean([edge_agreement(picture, scene.truth) for picture, scene in zip(
            paint(model, inputs, LoraUse("embedded:tiny_control", scale), 3.5), SCENES, strict=True)])
        for scale in (0.0, 1.0)
    )  # fmt: skip
    assert followed > without + 0.2
