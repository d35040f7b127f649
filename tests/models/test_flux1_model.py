from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fluxexp.errors import SampleError
from fluxexp.models.base import Job
from fluxexp.models.flux1.after_step import KeepLatents
from fluxexp.models.flux1.input_tokens import NoInputTokens
from fluxexp.models.flux1.latents import pack, position_ids, unpack
from tests.models.conftest import SEEDS, Load, fill_inputs, point, run, text_inputs

even = st.integers(1, 6).map(lambda n: 2 * n)


@given(batch=st.integers(1, 3), channels=st.integers(1, 5), height=even, width=even)
def test_unpack_undoes_pack(batch: int, channels: int, height: int, width: int) -> None:
    latents = torch.arange(batch * channels * height * width).view(batch, channels, height, width)
    packed = pack(latents)
    assert packed.shape == (batch, height * width // 4, channels * 4)
    assert torch.equal(unpack(packed, height, width), latents)


def test_positions_are_rows_and_columns() -> None:
    assert position_ids(2, 3).tolist() == [[0, r, c] for r in range(2) for c in range(3)]


def test_an_image_that_is_not_finite_fails_alone_in_its_batch(load: Load) -> None:
    model = load("tiny_dev")
    conditionings = model.condition(text_inputs(), None)
    jobs = [Job(c, point(2), seed) for c, seed in zip(conditionings, SEEDS, strict=True)]
    latents = model.denoise(jobs)
    packed = latents.packed.clone()
    packed[1, 0, 0] = float("nan")
    decoded = model.decode(replace(latents, packed=packed)).images()
    assert [image is None for image in decoded] == [False, True, False]


def test_a_decoder_that_overflows_fails_its_image(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float16 the latents can be finite, and the picture would be black."""
    model = load("tiny_dev")
    conditionings = model.condition(text_inputs(), None)
    latents = model.denoise([Job(c, point(2), seed) for c, seed in zip(conditionings, SEEDS, strict=True)])
    decode = model.vae.decode

    def overflow(unpacked: torch.Tensor, **options: Any) -> Any:
        (pixels,) = decode(unpacked, **options)
        pixels[2, 0, 5, 5] = float("inf")
        return (pixels,)

    monkeypatch.setattr(model.vae, "decode", overflow)
    assert [image is None for image in model.decode(latents).images()] == [False, False, True]


def test_images_have_the_working_size(load: Load) -> None:
    model = load("tiny_fill")
    jobs = [Job(model.condition(fill_inputs(number=1), None)[0], point(1), 0)]
    images = model.decode(model.denoise(jobs)).images()
    assert [image.size for image in images if image] == [(96, 64)]


def test_a_sample_without_the_inputs_of_its_family_is_a_sample_error(load: Load) -> None:
    with pytest.raises(SampleError, match=r"no image and no mask, but model\.family=flux_fill fills"):
        load("tiny_fill").condition(text_inputs(), None)


def test_image_to_image_needs_an_image_and_no_mask(load: Load) -> None:
    model = load("tiny_dev", family="flux_img2img")
    with pytest.raises(SampleError, match="the sample has no image, but"):
        model.condition(text_inputs(), None)
    (item, *_) = fill_inputs()
    with_mask, without = [item], [replace(item, mask=None)]
    half = [point(strength=0.5)]
    assert torch.equal(run(model, with_mask, half), run(model, without, half))


def test_tokens_count_image_and_text(load: Load) -> None:
    model = load("tiny_fill")
    assert model.tokens(128, 64, None) == 8 * 4 + 32
    assert model.tokens(128, 64, 16) == 8 * 4 + 16


def test_max_sequence_length_shortens_the_text(load: Load) -> None:
    model = load("tiny_dev")
    assert model.condition(text_inputs(), 8)[0].prompt_embeds.shape[0] == 8


def test_the_family_changes_latents_after_each_step(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop calls the strategy after each step, so blending needs no change of the loop."""
    seen: list[tuple[int, object, int]] = []

    class Halve(KeepLatents):
        def begin(self, conditionings: Any, noise: Any) -> Any:
            return torch.full((len(conditionings), 1, 1), 0.5)

        def apply(self, latents: torch.Tensor, number: int, scheduler: Any, begun: Any) -> torch.Tensor:
            seen.append((number, latents.dtype, scheduler.step_index))
            halved: torch.Tensor = latents * begun
            return halved

    model = load("tiny_dev")
    plain = run(model, text_inputs(), [point(1)] * 3)
    monkeypatch.setattr(model, "_variant", replace(model._variant, after_step=Halve()))
    assert torch.equal(run(model, text_inputs(), [point(1)] * 3), plain / 2)
    run(model, text_inputs(), [point(2)] * 3)
    assert [number for number, _, _ in seen] == [0, 0, 1]
    assert [index for _, _, index in seen] == [1, 1, 2]


def test_the_family_takes_the_velocity_from_the_prediction(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[tuple[int, int]] = []

    class NoVelocity(NoInputTokens):
        def prediction(self, predicted: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
            lengths.append((predicted.shape[1], latents.shape[1]))
            return predicted * 0

    model = load("tiny_dev")
    monkeypatch.setattr(model, "_variant", replace(model._variant, input_tokens=NoVelocity()))
    jobs = [Job(model.condition(text_inputs(), None)[0], point(1), 0)]
    start = model.begin(jobs).latents
    assert torch.equal(model.denoise(jobs).packed, start), "a velocity of zero moves nothing"
    assert lengths == [(24, 24)]
