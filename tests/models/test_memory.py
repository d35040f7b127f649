"""The quickest placement that fits is chosen, whatever the sizes are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fluxexp.config.optimization import NONE
from fluxexp.errors import ModelError
from fluxexp.models.layouts import LAYOUTS
from fluxexp.models.memory import GIB, POLICIES, Batch, Parts, Work, choose, placements
from fluxexp.models.offloading import parts_of, weight_bytes, work_for
from fluxexp.models.random_weights import pipeline_without_weights

BYTES = st.integers(0, 30 * GIB)
BLOCKS = st.lists(st.integers(1, GIB), min_size=1, max_size=60)
PARTS = st.builds(
    Parts, text=BYTES, text_blocks=BLOCKS, transformer=BYTES, blocks=BLOCKS, modulations=BLOCKS, vae=BYTES
)
WORK = st.builds(Work, encode=BYTES, denoise=BYTES, decode=BYTES)


@given(PARTS, WORK, st.integers(0, 200 * GIB))
def test_what_is_chosen_fits_and_nothing_quicker_does(parts: Parts, work: Work, free_bytes: int) -> None:
    everything = list(placements(parts, work))
    able = [place for place in everything if place.needed_bytes <= free_bytes]
    if not able:
        with pytest.raises(ModelError, match="offload=auto"):
            choose("auto", free_bytes, parts, work)
        return
    chosen = choose("auto", free_bytes, parts, work)
    assert chosen.needed_bytes <= free_bytes
    assert (chosen.policy, chosen.vae_alone) == (able[0].policy, able[0].vae_alone)
    assert all(0 <= number <= whole for number, whole in zip(chosen.staying, chosen.of, strict=True))
    for policy in POLICIES:
        fits = any(place.policy == policy for place in able)
        if fits:
            assert choose(policy, free_bytes, parts, work).policy == policy
        else:
            with pytest.raises(ModelError, match=f"optimization.offload={policy}"):
                choose(policy, free_bytes, parts, work)


@given(PARTS, WORK, st.integers(0, 200 * GIB), st.integers(0, 50 * GIB))
def test_more_memory_is_never_slower(parts: Parts, work: Work, free_bytes: int, more: int) -> None:
    try:
        less = choose("auto", free_bytes, parts, work)
    except ModelError:
        return
    chosen = choose("auto", free_bytes + more, parts, work)
    assert POLICIES.index(chosen.policy) <= POLICIES.index(less.policy)
    if chosen.policy == less.policy:
        assert chosen.staying >= less.staying
        assert chosen.vae_alone <= less.vae_alone


def test_blocks_come_only_where_the_denoiser_lets_them() -> None:
    parts = Parts(text=GIB, text_blocks=[GIB], transformer=GIB, blocks=[GIB] * 20, modulations=[GIB], vae=GIB)
    work = Work(GIB, GIB, GIB)
    assert choose("auto", 10 * GIB, parts, work).policy == "group"
    for asked in ("auto", "group"):
        with pytest.raises(ModelError, match="hoist_constants=true"):
            choose(asked, 10 * GIB, parts, work, can_stream=False)


@pytest.mark.parametrize(
    ("free_gib", "fp8", "text", "policy"),
    [
        (78, False, None, "resident"),
        (35, False, None, "text_encoders"),
        (31, False, None, "group"),
        (22.5, False, None, "group"),
        (22.5, True, None, "group"),
        (22.5, True, "fp8", "text_encoders"),
        (23.5, True, "fp8", "resident"),
        (11, False, None, "group"),
        (7, False, None, "group"),
    ],
)
def test_flux_fill_on_usual_cards(free_gib: float, fp8: bool, text: Any, policy: str) -> None:
    pipeline = pipeline_without_weights(LAYOUTS["flux_fill"], torch.bfloat16)
    asked = replace(NONE, hoist_constants=True, fp8_linears=fp8, text_encoder_weights=text, offload="auto")
    parts = parts_of(pipeline, asked)
    chosen = choose("auto", int(free_gib * GIB), parts, work_for(pipeline, asked, Batch(1024**2)))
    assert chosen.policy == policy
    if policy == "group":
        # Of 24 GB all blocks stay: steps are recorded, and only modulations and the text encoder's blocks come.
        assert chosen.moves_transformer == (free_gib < 20)
    if not fp8 and text is None:
        assert parts.all == weight_bytes(pipeline.components.values())


def test_room_is_left_for_the_largest_batch() -> None:
    pipeline = pipeline_without_weights(LAYOUTS["flux_fill"], torch.bfloat16)
    plain, tiled = (replace(NONE, offload="auto", vae_tiling=tiling) for tiling in (False, True))
    one, four = (work_for(pipeline, plain, Batch(1024**2, images)) for images in (1, 4))
    assert (four.encode, four.decode) == (4 * one.encode, 4 * one.decode)
    assert one.denoise < four.denoise < 4 * one.denoise, "a table of modulations is as large for any batch"
    larger = work_for(pipeline, plain, Batch(2048**2))
    assert (larger.decode, larger.denoise > one.denoise) == (4 * one.decode, True)
    assert work_for(pipeline, tiled, Batch(2048**2)).decode == work_for(pipeline, tiled, Batch(1024**2)).decode


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_room_for_two_batches_is_room_for_each(pixels: int, images: int, more_pixels: int, more_images: int) -> None:
    one, other = Batch(pixels, images), Batch(more_pixels, more_images)
    both = one.with_room_for(other)
    assert both.with_room_for(one) == both == both.with_room_for(other)
    assert both.pixels in (pixels, more_pixels)
    assert both.images in (images, more_images)
