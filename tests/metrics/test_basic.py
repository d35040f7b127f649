"""Scores are compared with short NumPy formulas, and with known scores of special images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage.metrics import structural_similarity

from fluxexp.arrays import ImageArray
from fluxexp.data.shapes import draw_scene
from fluxexp.data.shapes.styles import STYLES, Style
from fluxexp.metrics.basic import BASIC, OutputDistance
from fluxexp.metrics.case import Case, make_case
from fluxexp.metrics.catalog import CATALOG
from fluxexp.metrics.memo import Memo
from fluxexp.metrics.similarity import PSNR_IDENTICAL, Windowed, ms_ssim, psnr, ssim_map
from fluxexp.records import Sample

Compose = Callable[..., Any]


def scene_case(index: int = 0, size: int = 96, **changes: Any) -> Case:
    """A scene with its ground truth as the result, and with `changes`."""
    scene = draw_scene(0, index, size, size)
    values = {
        "result": scene.truth,
        "input": scene.masked_scene,
        "truth": scene.truth,
        "masked_region": scene.mask > 0,
        "prompt": scene.caption,
        "traits": scene.traits,
    }
    return Case(**{**values, **changes})


def score(case: Case) -> dict[str, float | None]:
    return {name: value for metric in BASIC for name, value in metric().score(case).items()}


def test_every_name_is_in_the_catalog() -> None:
    named = [*(name for metric in BASIC for name in metric().names), *OutputDistance().names]
    assert set(named) <= set(CATALOG)
    assert set(score(scene_case())) == {name for metric in BASIC for name in metric().names}


def test_the_ground_truth_has_perfect_scores() -> None:
    scores = score(scene_case())
    assert scores["psnr_hole"] == scores["psnr_kept"] == PSNR_IDENTICAL
    assert scores["ssim_hole"] == pytest.approx(1)
    assert (scores["seam"], scores["max_difference_kept"], scores["blank"]) == (0, 0, 0)
    assert (scores["color_right"], scores["shape_right"], scores["adherence"]) == (1, 1, 1)
    assert scores["ms_ssim_hole"] is None, "the masked region is too small for five scales"
    assert scores["hole_change"] is not None
    assert scores["hole_change"] > 10, "the masked region of the input is gray"


def test_an_unchanged_masked_region_is_detected() -> None:
    case = scene_case()
    scores = score(scene_case(result=case.input))
    assert (scores["hole_change"], scores["blank"], scores["adherence"], scores["color_right"]) == (0, 1, 0, 0)


def test_psnr_counts_values_not_pixels() -> None:
    case = scene_case()
    assert case.masked_region is not None
    noisy = case.result.copy()
    noisy[case.masked_region, 0] = np.where(
        noisy[case.masked_region, 0] > 127, noisy[case.masked_region, 0] - 10, noisy[case.masked_region, 0] + 10
    )
    found = score(scene_case(result=noisy))["psnr_hole"]
    assert found == pytest.approx(10 * math.log10(255**2 / (100 / 3)), abs=1e-9), "a third of the values differ by 10"


@given(st.integers(0, 2**32 - 1))
def test_psnr_equals_its_formula(seed: int) -> None:
    a, b = np.random.default_rng(seed).integers(0, 256, (2, 5, 7, 3), np.uint8)
    mse = np.mean((a.astype(float) - b.astype(float)) ** 2)
    assert psnr(a, b) == pytest.approx(20 * math.log10(255) - 10 * math.log10(mse))
    assert psnr(a, b) == psnr(b, a)


def test_ssim_equals_the_formula_of_its_paper() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (24, 24, 3), np.uint8) for _ in range(2))
    offsets = np.arange(11) - 5
    weights = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(weights, weights) / weights.sum() ** 2
    x, y = a[7:18, 6:17].astype(float), b[7:18, 6:17].astype(float)

    def mean(values: Any) -> Any:
        return np.einsum("ij,ijc->c", window, values)

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = ((2 * mx * my + c1) * (2 * cov + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert ssim_map(a, b)[12, 11] == pytest.approx(expected.mean(), abs=1e-6)


@pytest.mark.parametrize("shape", [(24, 24, 3), (11, 40, 3), (5, 40, 3), (1, 1, 3), (97, 64, 3)])
def test_ssim_has_the_bits_of_scikit_image(shape: tuple[int, int, int]) -> None:
    """Scores that an earlier version stored with scikit-image stay valid."""
    rng = np.random.default_rng(1)
    a = rng.integers(0, 256, shape, np.uint8)
    b = np.clip(a + rng.integers(-30, 31, shape), 0, 255).astype(np.uint8)
    padded = [np.pad(x, [*((0, max(0, 11 - side)) for side in shape[:2]), (0, 0)], mode="edge") for x in (a, b)]
    options: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "full": True}
    _, expected = structural_similarity(*padded, data_range=255, channel_axis=2, **options)
    assert np.array_equal(ssim_map(a, b), expected[: shape[0], : shape[1]].mean(axis=2))


def test_results_of_one_sample_share_what_is_computed_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    image, truth, *results = rng.integers(0, 256, (5, 40, 40, 3), np.uint8)
    reference = rng.integers(0, 256, image.shape, np.uint8)
    masked_region = np.zeros((40, 40), bool)
    masked_region[10:30, 12:33] = True

    def scores(result: ImageArray, shared: Memo) -> dict[str, float | None]:
        pasted = np.where(masked_region[..., None], result, image)
        images = {"result": pasted, "input": image, "truth": truth, "masked_region": masked_region}
        case = Case(**images, prompt="", traits={}, shared=shared)
        parts = [*(metric().score(case) for metric in BASIC), OutputDistance().measure(case, reference)]
        return {name: value for part in parts for name, value in part.items()}

    alone = [scores(result, Memo()) for result in results]
    windowed: list[ImageArray] = []
    make = Windowed.of

    def counted(pixels: ImageArray) -> Windowed:
        windowed.append(pixels)
        return make(pixels)

    monkeypatch.setattr(Windowed, "of", counted)
    shared = Memo()
    assert [scores(result, shared) for result in results] == alone
    assert len(windowed) == len(results) + 2, "the truth and the reference's result are filtered once"


def test_ssim_map_of_a_tiny_image_has_its_size() -> None:
    a = np.random.default_rng(0).integers(0, 256, (5, 40, 3), np.uint8)
    assert ssim_map(a, a).shape == (5, 40)


def test_ms_ssim_needs_a_minimum_size() -> None:
    a = np.random.default_rng(0).integers(0, 256, (176, 190, 3), np.uint8)
    assert ms_ssim(a[:175], a[:175]) is None
    assert ms_ssim(a, a) == pytest.approx(1, abs=1e-5)
    dimmer = (a * 0.8).astype(np.uint8)
    assert 0 < (ms_ssim(a, dimmer) or 0) < 1


def test_masked_and_unmasked_scores_use_only_their_region() -> None:
    case = scene_case()
    assert case.masked_region is not None
    changed = case.result.copy()
    changed[~case.masked_region] ^= 3
    scores = score(scene_case(result=changed))
    assert scores["psnr_hole"] == PSNR_IDENTICAL
    assert scores["max_difference_kept"] == 3
    assert scores["psnr_kept"] == pytest.approx(psnr(changed[~case.masked_region], case.result[~case.masked_region]))


def test_the_seam_is_the_difference_from_the_step_of_the_ground_truth() -> None:
    flat = np.full((20, 20, 3), 100, np.uint8)
    masked_region = np.zeros((20, 20), bool)
    masked_region[5:10, 5:10] = True
    result = flat.copy()
    result[masked_region] = 130
    scores = score(scene_case(result=result, truth=flat, input=flat, masked_region=masked_region))
    assert scores["seam"] == 30
    smeared = score(scene_case(result=flat, truth=result, input=flat, masked_region=masked_region))
    assert smeared["seam"] == 30, "a border without the ground truth's step is as wrong as one with a step too many"


def test_a_saturated_result_is_detected() -> None:
    case = scene_case()
    assert case.masked_region is not None
    burnt = case.result.copy()
    burnt[case.masked_region] = 255
    scores = score(scene_case(result=burnt))
    assert (scores["saturated"], scores["blank"]) == (1, 1)


def test_colorfulness_is_zero_for_gray_and_follows_the_published_formula() -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    assert score(scene_case(result=pixels + 90, input=None, truth=None, masked_region=None))["colorfulness"] == 0
    pixels[:16] = (200, 100, 50)  # red - green: 100 or 0; (red + green) / 2 - blue: 100 or 0
    pixels[16:] = 60
    found = score(scene_case(result=pixels, input=None, truth=None, masked_region=None))["colorfulness"]
    assert found == pytest.approx(1.3 * math.hypot(50, 50))


@pytest.mark.parametrize("style", STYLES)
def test_a_styled_object_is_less_colorful_than_a_plain_one(style: Style) -> None:
    scenes = [draw_scene(0, 3, 96, 96, kind) for kind in (None, style)]
    plain, styled = (score(scene_case(3, result=scene.truth))["colorfulness"] for scene in scenes)
    assert plain is not None
    assert styled is not None
    assert styled < 0.9 * plain


@pytest.mark.parametrize("masked_region", ["nothing", "everything"])
def test_empty_and_full_masks(masked_region: str) -> None:
    mask = np.full((96, 96), masked_region == "everything")
    scores = score(scene_case(masked_region=mask))
    assert (scores["psnr_hole"] is None) == (masked_region == "nothing")
    assert (scores["psnr_kept"] is None) == (masked_region == "everything")
    assert scores["seam"] is None


def test_without_a_ground_truth_its_scores_are_none() -> None:
    scores = score(scene_case(truth=None))
    assert scores["psnr_hole"] is scores["ssim_hole"] is scores["seam"] is None
    assert scores["psnr_kept"] is not None


def test_a_text_to_image_result_is_scored_as_a_whole() -> None:
    scores = score(scene_case(input=None, truth=None, masked_region=None, traits={}))
    assert scores["blank"] == 0
    assert {name for name, value in scores.items() if value is not None} == {"blank", "saturated", "colorfulness"}


def test_distances_use_only_the_masked_region() -> None:
    case = scene_case()
    assert case.masked_region is not None
    other = case.result.copy()
    other[~case.masked_region] = 0
    assert OutputDistance().measure(case, other)["psnr_to_reference"] == PSNR_IDENTICAL
    other[case.masked_region] ^= 1
    assert OutputDistance().measure(case, other)["psnr_to_reference"] == pytest.approx(10 * math.log10(255**2))


def sample(size: tuple[int, int]) -> Sample:
    scene = draw_scene(0, 3, size[1], size[0])
    image, mask, truth = (Image.fromarray(pixels) for pixels in (scene.masked_scene, scene.mask, scene.truth))
    return Sample(key="3", prompt="p", image=image, mask=mask, truth=truth)


@pytest.mark.parametrize("placement", ["fit", "crop", "pad"])
def test_unpasted_results_are_scored_at_the_working_size(compose: Compose, placement: str) -> None:
    config = compose("output.paste=false", f"dataset.placement={placement}", "sampling.height=64", "sampling.width=64")
    case = make_case(Image.new("RGB", (64, 64)), sample((120, 80)), config)
    assert case.masked_region is not None
    assert case.truth is not None
    assert case.input is not None
    assert case.result.shape == case.truth.shape == case.input.shape == (64, 64, 3)
    unmasked = ~case.masked_region
    assert np.abs(case.truth[unmasked].astype(int) - case.input[unmasked]).mean() < 8, (
        "image and ground truth are placed in the same way"
    )


def test_only_the_visible_part_of_a_cropped_mask_is_scored(compose: Compose) -> None:
    config = compose("dataset.placement=crop", "sampling.height=64", "sampling.width=64")
    wide = sample((256, 64))
    assert wide.mask is not None
    whole = Image.new("L", wide.mask.size, 255)
    case = make_case(Image.new("RGB", (256, 64)), Sample(key="3", prompt="", image=wide.image, mask=whole), config)
    assert case.masked_region is not None
    assert case.masked_region.sum() == 64 * 64
