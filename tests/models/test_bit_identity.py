"""Each family gives the bits of its pipeline in diffusers, for every guidance of a batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxFillPipeline, FluxImg2ImgPipeline, FluxPipeline
from PIL import Image

from fluxexp.models.base import Job
from fluxexp.models.flux1.image_encoding import PixelTable
from tests.models.conftest import PROMPTS, SEEDS, Load, fill_inputs, generators, inputs_of, library_pipeline, point, run

GUIDANCES = [1.0, 4.0, 30.0]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def reference(name: str, dtype: str, device: str = "cpu", pipeline_class: Any = None) -> Any:
    pipeline_class = pipeline_class or (FluxFillPipeline if name == "tiny_fill" else FluxPipeline)
    return library_pipeline(pipeline_class, name, dtype, device)


BITS = [
    ("tiny_dev", "flux", FluxPipeline, (), 1.0),
    *(("tiny_dev", "flux_img2img", FluxImg2ImgPipeline, ("image",), strength) for strength in (1.0, 0.6, 0.3)),
    *(("tiny_fill", "flux_fill", FluxFillPipeline, ("image", "mask_image"), strength) for strength in (1.0, 0.7, 0.3)),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "family", "pipeline_class", "pictures", "strength"), BITS)
def test_a_batch_of_mixed_guidance(
    load: Load,
    name: str,
    family: str,
    pipeline_class: Any,
    pictures: tuple[str, ...],
    strength: float,
    dtype: str,
    device: str,
) -> None:
    inputs = inputs_of(family)
    points = [point(4, guidance, strength) for guidance in GUIDANCES]
    ours = run(load(name, dtype, device=device, family=family), inputs, points)
    pipeline = reference(name, dtype, device, pipeline_class)
    all_pictures = {"image": [item.image for item in inputs], "mask_image": [item.mask for item in inputs]}
    arguments = {key: all_pictures[key] for key in pictures} | ({"strength": strength} if pictures else {})
    for index, guidance in enumerate(GUIDANCES):
        theirs = pipeline(
            prompt=PROMPTS,
            height=64,
            width=96,
            num_inference_steps=4,
            guidance_scale=guidance,
            generator=generators(),
            max_sequence_length=32,
            output_type="latent",
            **arguments,
        ).images
        assert torch.equal(ours[index], theirs[index])


def test_decoded_images_are_the_pipelines(load: Load) -> None:
    model, inputs = load("tiny_fill"), fill_inputs()
    jobs = [Job(c, point(), seed) for c, seed in zip(model.condition(inputs, None), SEEDS, strict=True)]
    ours = model.decode(model.denoise(jobs)).images()
    theirs = reference("tiny_fill", "float32")(
        prompt=PROMPTS,
        image=[item.image for item in inputs],
        mask_image=[item.mask for item in inputs],
        height=64,
        width=96,
        num_inference_steps=3,
        guidance_scale=4.0,
        generator=generators(),
        max_sequence_length=32,
    ).images
    for mine, other in zip(ours, theirs, strict=True):
        assert np.array_equal(np.asarray(mine), np.asarray(other))


@pytest.mark.parametrize("scheduler", ["flow_match_euler", "flow_match_lcm"])
def test_noise_sampled_ahead_is_that_of_the_seed(load: Load, scheduler: str) -> None:
    model = load("tiny_fill")
    conditionings = model.condition(fill_inputs(), None)
    asked = replace(point(2), scheduler=scheduler)
    jobs = [Job(c, asked, seed) for c, seed in zip(conditionings, SEEDS, strict=True)]
    ahead = [replace(job, noise_sample=model.sample_noise(job.seed, 64, 96)) for job in jobs]
    assert torch.equal(model.denoise(ahead).packed, model.denoise(jobs).packed)


def test_reusing_a_conditioning_at_other_points_changes_no_bit(load: Load) -> None:
    model, inputs = load("tiny_fill"), fill_inputs()
    kept = model.condition(inputs, None)

    def denoised(conditionings: list[Any], guidance: float) -> torch.Tensor:
        jobs = [Job(c, point(2, guidance), s) for c, s in zip(conditionings, SEEDS, strict=True)]
        return model.denoise(jobs).packed

    first = denoised(kept, 1.0)
    assert torch.equal(denoised(kept, 9.0), denoised(model.condition(inputs, None), 9.0))
    assert torch.equal(denoised(kept, 1.0), first)


@pytest.mark.parametrize("device", DEVICES)
def test_pixels_have_the_bits_and_the_layout_of_diffusers_processors(load: Load, device: str) -> None:
    pipeline = load("tiny_fill", device=device).pipeline
    random = np.random.default_rng(0)
    colors = [Image.fromarray(random.integers(0, 256, (48, 80, 3), dtype=np.uint8)) for _ in range(2)]
    grays = [image.getchannel(0) for image in colors]
    for processor, mode, images in ((pipeline.image_processor, "RGB", colors), (pipeline.mask_processor, "L", grays)):
        theirs = processor.preprocess(images, height=48, width=80)
        ours = PixelTable(processor, mode, torch.device(device))(images)
        assert torch.equal(ours.cpu(), theirs)
        assert ours.permute(0, 2, 3, 1).is_contiguous() == theirs.permute(0, 2, 3, 1).is_contiguous()


def test_the_image_is_encoded_only_below_full_strength(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = load("tiny_fill"), fill_inputs()
    encode = model.vae.encode
    encoded: list[int] = []

    def counted(pixels: torch.Tensor) -> Any:
        encoded.append(len(pixels))
        return encode(pixels)

    monkeypatch.setattr(model.vae, "encode", counted)
    run(model, inputs, [point()] * 3)
    assert encoded == [3], "the masked images, as one batch"
    run(model, inputs, [point(strength=0.5)] * 3)
    assert encoded == [3, 3, 1, 1, 1]


def test_image_to_image_at_full_strength_encodes_nothing(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load("tiny_dev", family="flux_img2img")
    monkeypatch.setattr(model.vae, "encode", None)
    run(model, fill_inputs(), [point()] * 3)


def test_the_image_in_the_masked_region_has_no_effect_at_full_strength(load: Load) -> None:
    model, inputs = load("tiny_fill"), fill_inputs(number=1)
    item = inputs[0]
    assert item.image is not None
    assert item.mask is not None
    blanked = item.image.copy()
    blanked.paste((0, 255, 0), mask=item.mask)
    other = [type(item)(prompt=item.prompt, height=64, width=96, image=blanked, mask=item.mask)]
    full, partial = [point()], [point(strength=0.5)]
    assert torch.equal(run(model, inputs, full), run(model, other, full))
    assert not torch.equal(run(model, inputs, partial), run(model, other, partial))
