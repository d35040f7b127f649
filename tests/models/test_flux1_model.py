from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fluxexp.errors import SampleError
from fluxexp.models.base import Job
from fluxexp.models.flux1.latents import pack, position_ids, unpack
from tests.models.conftest import SEEDS, Load, fill_inputs, point, text_inputs

even = st.integers(1, 6).map(lambda n: 2 * n)


@given(batch=st.integers(1, 3), channels=st.integers(1, 5), height=even, width=even)
def test_unpack_undoes_pack(batch: int, channels: int, height: int, width: int) -> None:
    latents = torch.arange(batch * channels * height * width).view(batch, channels, height, width)
    packed = pack(latents)
    assert packed.shape == (batch, height * width // 4, channels * 4)
    assert torch.equal(unpack(packed, height, width), latents)


def test_positions_are_rows_and_columns() -> None:
    assert position_ids(2, 3).tolist() == [[0, r, c] for r in range(2) for c in range(3)]


def test_what_is_not_finite_is_told_apart_from_its_batch_mates(load: Load) -> None:
    model = load("tiny_dev")
    conditionings = model.condition(text_inputs(), None)
    jobs = [Job(c, point(2), seed) for c, seed in zip(conditionings, SEEDS, strict=True)]
    latents = model.denoise(jobs)
    packed = latents.packed.clone()
    packed[1, 0, 0] = float("nan")
    decoded = model.decode(replace(latents, packed=packed)).images()
    assert [image is None for image in decoded] == [False, True, False]


def test_images_have_the_working_size(load: Load) -> None:
    model = load("tiny_fill")
    jobs = [Job(model.condition(fill_inputs(number=1), None)[0], point(1), 0)]
    images = model.decode(model.denoise(jobs)).images()
    assert [image.size for image in images if image] == [(96, 64)]


def test_filling_a_sample_without_a_mask_is_that_samples_error(load: Load) -> None:
    with pytest.raises(SampleError, match="no image or no mask"):
        load("tiny_fill").condition(text_inputs(), None)


def test_tokens_count_image_and_text(load: Load) -> None:
    model = load("tiny_fill")
    assert model.tokens(128, 64, None) == 8 * 4 + 32
    assert model.tokens(128, 64, 16) == 8 * 4 + 16


def test_max_sequence_length_shortens_the_text(load: Load) -> None:
    model = load("tiny_dev")
    assert model.condition(text_inputs(), 8)[0].prompt_embeds.shape[0] == 8
