from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fluxexp.config.schema import MaskKind
from fluxexp.data.masks import KINDS, draw_mask
from tests.data.making import array

AREAS = {"box": (0.05, 0.55), "center": (0.2, 0.3), "strokes": (0.02, 0.75), "outpaint": (0.1, 0.9)}
"""Smallest and largest fraction of the image that a mask of each kind covers."""

kinds = st.sampled_from(KINDS)


def fraction(kind: str, size: tuple[int, int], key: str) -> float:
    return float((array(draw_mask(kind, size, key)) == 255).mean())  # type: ignore[arg-type]


@settings(max_examples=150)
@example("strokes", 155, 17, "\ue617\u00d75\x04s\x8bY\u00c0\U000aacb1\U0008d910*f")  # 47 pixels instead of 53
@given(kinds, st.integers(16, 2000), st.integers(16, 300), st.text(max_size=12))
def test_masks_have_masked_and_unmasked_pixels(kind: MaskKind, width: int, height: int, key: str) -> None:
    mask = draw_mask(kind, (width, height), key)
    assert mask.mode == "L"
    assert mask.size == (width, height)
    assert set(np.unique(array(mask))) == {0, 255}
    low, high = AREAS[kind]
    assert 0.8 * low <= fraction(kind, (width, height), key) <= high, "rounding matters in flat images"
    assert draw_mask(kind, (width, height), key).tobytes() == mask.tobytes()


@given(kinds, st.integers(1, 5), st.integers(1, 5), st.integers(0, 20))
def test_tiny_images_have_a_mask(kind: MaskKind, width: int, height: int, key: int) -> None:
    painted = int((array(draw_mask(kind, (width, height), str(key))) == 255).sum())
    assert painted >= 1
    assert painted < width * height or width * height == 1


@pytest.mark.parametrize("kind", ["box", "strokes", "outpaint"])
def test_masks_differ_by_key(kind: MaskKind) -> None:
    drawn = {draw_mask(kind, (64, 48), f"sample {index}").tobytes() for index in range(40)}
    assert len(drawn) >= 35


def test_masks_never_change_between_versions() -> None:
    drawn = {
        kind: hashlib.sha256(draw_mask(kind, (96, 64), "a").tobytes()).hexdigest()[:16]
        for kind in ("box", "center", "outpaint")
    }
    assert drawn == {"box": "4ce26516d31ab733", "center": "57e42468affe90df", "outpaint": "6635b37cf6391f04"}


def test_a_box_is_a_box() -> None:
    for key in "abcdef":
        mask = draw_mask("box", (80, 60), key)
        left, top, right, bottom = mask.getbbox() or (0, 0, 0, 0)
        assert (array(mask)[top:bottom, left:right] == 255).all()


def test_the_center_is_half_of_each_side() -> None:
    assert draw_mask("center", (80, 60), "any").getbbox() == (20, 15, 60, 45)


def test_outpainting_starts_at_an_edge_and_leaves_the_middle_unmasked() -> None:
    for key in range(30):
        pixels = array(draw_mask("outpaint", (80, 60), str(key)))
        sides = [pixels[:, 0], pixels[0], pixels[:, -1], pixels[-1]]
        assert 1 <= sum(bool((side == 255).all()) for side in sides) <= 3
        assert (pixels[20:40, 26:54] == 0).all()
