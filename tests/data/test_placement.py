from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from fluxexp.config.schema import PlacementMode
from fluxexp.data import Placed, place, restore
from fluxexp.data.placement import expected_pixels, working_size
from fluxexp.records import Sample
from tests.data.making import array, noise, spot

MEGAPIXEL = 1 << 20

policies = st.sampled_from(["fit", "crop", "pad"])
lengths = st.integers(1, 200)
multiples = st.integers(1, 10).map(lambda count: 16 * count)


def sample_of(mask: Image.Image, size: tuple[int, int] | None = None) -> Sample:
    return Sample(key="k", prompt="p", image=noise(*mask.size), mask=mask, size=size)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    """Samples of any aspect ratio with one to three masked boxes."""
    width, height = draw(lengths), draw(lengths)
    mask = Image.new("L", (width, height), 0)
    for _ in range(draw(st.integers(1, 3))):
        left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        mask.paste(255, (left, top, draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))))
    return sample_of(mask)


def placed_at(sample: Sample, policy: PlacementMode, height: int | None, width: int | None) -> Placed:
    return place(sample, policy, height, width, MEGAPIXEL, 128)


def any_under(mask: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """By definition, a pixel of the result is set if it overlaps a set pixel of `mask`."""
    result = np.zeros((height, width), np.uint8)
    own_height, own_width = mask.shape
    for y, x in np.argwhere(mask > 0):
        rows = slice(y * height // own_height, math.ceil((y + 1) * height / own_height))
        columns = slice(x * width // own_width, math.ceil((x + 1) * width / own_width))
        result[rows, columns] = 255
    return result


@settings(max_examples=100)
@given(samples(), policies, st.none() | multiples, st.none() | multiples, st.integers(0, 2**32 - 1))
def test_every_unmasked_pixel_is_restored(
    sample: Sample, policy: PlacementMode, height: int | None, width: int | None, seed: int
) -> None:
    placed = placed_at(sample, policy, height, width)
    restored = restore(noise(placed.width, placed.height, seed), sample, placed.frame, paste=True)
    assert sample.image is not None
    assert restored.size == sample.image.size
    assert restored.mode == "RGB"
    kept = array(sample.mask) == 0
    assert (array(restored)[kept] == array(sample.image)[kept]).all()


@settings(max_examples=100)
@given(samples(), policies, multiples, multiples)
def test_every_masked_pixel_in_the_window_is_replaced(
    sample: Sample, policy: PlacementMode, height: int, width: int
) -> None:
    placed = placed_at(sample, policy, height, width)
    black = Sample(key="k", prompt="p", image=Image.new("RGB", sample.mask.size), mask=sample.mask)  # type: ignore[union-attr]
    restored = array(restore(Image.new("RGB", (width, height), "white"), black, placed.frame, paste=True))
    left, top, right, bottom = placed.frame.window
    inside = np.zeros(restored.shape[:2], bool)
    inside[top:bottom, left:right] = True
    masked = array(sample.mask) == 255
    assert (restored[masked & inside] == 255).all()
    assert (restored[~(masked & inside)] == 0).all()
    assert placed.frame.covered == pytest.approx((masked & inside).sum() / masked.sum())
    assert 0 < placed.frame.covered <= 1
    assert policy == "crop" or placed.frame.covered == 1


@settings(max_examples=60)
@given(samples(), policies, multiples, multiples)
def test_the_placed_image_has_the_working_size(sample: Sample, policy: PlacementMode, height: int, width: int) -> None:
    placed = placed_at(sample, policy, height, width)
    assert (placed.height, placed.width) == (height, width)
    assert placed.image is not None
    assert placed.mask is not None
    assert placed.image.size == placed.mask.size == (width, height)
    assert (placed.image.mode, placed.mask.mode) == ("RGB", "L")
    left, top, right, bottom = placed.frame.inner
    window = array(sample.mask)[slice(*placed.frame.window[1::2]), slice(*placed.frame.window[::2])]
    expected = np.zeros((height, width), np.uint8)
    expected[top:bottom, left:right] = any_under(window, bottom - top, right - left)
    assert (array(placed.mask) == expected).all()


@settings(max_examples=60)
@given(samples(), multiples, multiples)
def test_a_crop_contains_the_mask_whenever_it_fits(sample: Sample, height: int, width: int) -> None:
    assert sample.image is not None
    assert sample.mask is not None
    frame = placed_at(sample, "crop", height, width).frame
    left, top, right, bottom = frame.window
    assert 0 <= left < right <= sample.image.width
    assert 0 <= top < bottom <= sample.image.height
    assert right - left == sample.image.width or bottom - top == sample.image.height, (
        "the crop is the largest possible window"
    )
    box = sample.mask.getbbox()
    assert box is not None
    if box[2] - box[0] <= right - left and box[3] - box[1] <= bottom - top:
        assert left <= box[0]
        assert top <= box[1]
        assert right >= box[2]
        assert bottom >= box[3]
        assert frame.covered == 1


def test_a_crop_centers_the_mask_if_possible() -> None:
    assert placed_at(sample_of(spot(300, 100, (120, 10, 140, 20))), "crop", 64, 64).frame.window == (80, 0, 180, 100)
    assert placed_at(sample_of(spot(300, 100, (0, 10, 20, 20))), "crop", 64, 64).frame.window == (0, 0, 100, 100)
    assert placed_at(sample_of(spot(100, 300, (0, 280, 20, 290))), "crop", 64, 64).frame.window == (0, 200, 100, 300)


def test_a_crop_prefers_the_larger_of_two_distant_spots() -> None:
    mask = spot(400, 64, (0, 0, 10, 10))
    mask.paste(255, (370, 0, 400, 10))
    placed = placed_at(sample_of(mask), "crop", 64, 64)
    assert placed.frame.window == (336, 0, 400, 64)
    assert placed.frame.covered == pytest.approx(0.75)


def test_with_an_empty_mask_the_crop_is_in_the_middle() -> None:
    frame = placed_at(sample_of(Image.new("L", (300, 100), 0)), "crop", 64, 64).frame
    assert frame.window == (100, 0, 200, 100)
    assert frame.covered == 1


def test_crop_and_pad_keep_the_aspect_ratio() -> None:
    circle = Image.new("L", (160, 80), 0)
    circle.paste(255, (60, 20, 100, 60))
    for policy, expected in (("crop", (32, 32)), ("pad", (16, 16)), ("fit", (16, 32))):
        box = placed_at(sample_of(circle), policy, 64, 64).mask.getbbox()  # type: ignore[arg-type, union-attr]
        assert box is not None
        assert (box[2] - box[0], box[3] - box[1]) == expected, policy


def test_padding_repeats_the_edge_and_is_unmasked() -> None:
    sample = sample_of(Image.new("L", (32, 16), 255))
    placed = placed_at(sample, "pad", 32, 32)
    assert placed.frame.inner == (0, 8, 32, 24)
    pixels, own = array(placed.image), array(sample.image)
    assert (pixels[8:24] == own).all()
    assert (pixels[:8] == own[0]).all()
    assert (pixels[24:] == own[-1]).all()
    assert placed.mask is not None
    assert placed.mask.getbbox() == (0, 8, 32, 24)


@given(policies, multiples, multiples)
def test_an_image_of_the_working_size_is_not_changed(policy: PlacementMode, height: int, width: int) -> None:
    sample = sample_of(spot(width, height, (3, 4, 9, 12)))
    for placed in (placed_at(sample, policy, height, width), placed_at(sample, policy, None, None)):
        assert placed.image is not None
        assert placed.mask is not None
        assert sample.mask is not None
        assert (array(placed.image) == array(sample.image)).all()
        assert placed.mask.tobytes() == sample.mask.tobytes()
        result = noise(width, height, seed=1)
        masked = array(sample.mask) == 255
        restored = array(restore(result, sample, placed.frame, paste=True))
        assert (restored[masked] == array(result)[masked]).all()
        assert (array(restore(placed.image, sample, placed.frame, paste=True)) == array(sample.image)).all()


def test_crop_and_pad_without_resampling_are_reversible() -> None:
    for policy, size in (("crop", (100, 64)), ("pad", (64, 40))):
        sample = sample_of(Image.new("L", size, 255))
        placed = placed_at(sample, policy, 64, 64)  # type: ignore[arg-type]
        assert placed.image is not None
        assert (array(restore(placed.image, sample, placed.frame, paste=True)) == array(sample.image)).all()


def test_a_single_masked_pixel_of_a_large_image_stays_masked() -> None:
    placed = placed_at(sample_of(spot(3000, 2000, (1700, 900, 1701, 901))), "fit", 64, 96)
    assert placed.mask is not None
    assert placed.mask.getbbox() == (54, 28, 55, 29)


def test_without_pasting_the_result_is_unchanged() -> None:
    sample = sample_of(spot(50, 40, (3, 4, 9, 12)))
    placed = placed_at(sample, "crop", 64, 64)
    result = noise(64, 64, seed=1)
    assert restore(result, sample, placed.frame, paste=False) is result


def test_a_sample_without_an_image_has_only_a_size() -> None:
    prompt = Sample(key="k", prompt="p")
    placed = place(prompt, "fit", None, None, MEGAPIXEL, 192)
    assert (placed.height, placed.width, placed.image, placed.mask) == (192, 192, None, None)
    result = noise(192, 192)
    assert restore(result, prompt, placed.frame, paste=True) is result
    placed = place(Sample(key="k", prompt="p", size=(64, 96)), "fit", None, None, MEGAPIXEL, 192)
    assert (placed.height, placed.width) == (64, 96)
    assert placed.frame.window == placed.frame.inner == (0, 0, 96, 64)


def test_size_precedence_is_config_then_dataset_then_image() -> None:
    mask = spot(100, 100, (10, 10, 20, 20))
    assert placed_at(sample_of(mask), "fit", None, None).image.size == (96, 96)  # type: ignore[union-attr]
    assert placed_at(sample_of(spot(104, 71, (1, 1, 9, 9))), "fit", None, None).image.size == (112, 64)  # type: ignore[union-attr]
    assert placed_at(sample_of(mask, (64, 80)), "fit", None, None).image.size == (80, 64)  # type: ignore[union-attr]
    assert placed_at(sample_of(mask, (64, 80)), "fit", 32, 48).image.size == (48, 32)  # type: ignore[union-attr]
    assert placed_at(sample_of(mask, (64, 80)), "fit", 128, None).image.size == (160, 128)  # type: ignore[union-attr]
    assert placed_at(sample_of(mask, (64, 80)), "fit", None, 160).image.size == (160, 128)  # type: ignore[union-attr]


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(256, 1 << 22))
def test_working_sizes_are_multiples_of_16_within_the_limit(width: int, height: int, max_pixels: int) -> None:
    found = working_size((width, height), None, None, max_pixels)
    assert found[0] % 16 == found[1] % 16 == 0
    assert min(found) >= 16
    assert found[0] * found[1] <= max_pixels


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(256, 1 << 22))
def test_working_sizes_are_close_to_the_image_size(width: int, height: int, max_pixels: int) -> None:
    scale = min(1.0, math.sqrt(max_pixels / (width * height)))
    assume(min(width, height) * scale >= 16)
    found = working_size((width, height), None, None, max_pixels)
    assert abs(found[0] - width * scale) <= 16
    assert abs(found[1] - height * scale) <= 16


@given(st.integers(1, 2000), st.integers(1, 2000), multiples)
def test_the_other_side_follows_the_aspect_ratio(width: int, height: int, asked: int) -> None:
    by_height = working_size((width, height), asked, None, 256)
    by_width = working_size((height, width), None, asked, 256)
    assert by_height == by_width[::-1]
    assert by_height[1] == asked
    assert by_height[0] % 16 == 0
    assert by_height[0] == 16 or abs(by_height[0] - asked * width / height) <= 8


@given(st.integers(1, 9999), st.integers(1, 9999), st.none() | st.tuples(multiples, multiples), st.integers(256, 9999))
def test_no_working_size_has_more_pixels_than_expected(
    width: int, height: int, asked: tuple[int, int] | None, max_pixels: int
) -> None:
    asked_height, asked_width = asked or (None, None)
    found = working_size((width, height), asked_height, asked_width, max_pixels)
    assert found[0] * found[1] <= expected_pixels(asked_height, asked_width, max_pixels, 1024)


@given(st.integers(1, 9999), multiples, st.booleans())
def test_with_one_side_given_the_pixels_of_a_square_are_expected(own: int, asked: int, is_height: bool) -> None:
    height, width = (asked, None) if is_height else (None, asked)
    found = working_size((own, own), height, width, 256)
    assert found[0] * found[1] == expected_pixels(height, width, 256, 1024)


@pytest.mark.parametrize("policy", ["fit", "crop", "pad"])
def test_an_image_without_a_mask_is_placed(policy: PlacementMode) -> None:
    image = noise(64, 32)
    placed = place(Sample(key="k", prompt="p", image=image, mask=None), policy, 32, 32, MEGAPIXEL, 128)
    assert placed.image is not None
    assert placed.image.size == (32, 32)
    assert placed.mask is None
    assert placed.frame.covered == 1.0
    if policy == "crop":
        assert placed.frame.window == (16, 0, 48, 32), "the window in the middle"
        assert np.array_equal(array(placed.image), array(image)[:, 16:48])
