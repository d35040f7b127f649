from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fluxexp.config.schema import ShapesDatasetConfig
from fluxexp.data import Dataset, open_dataset
from fluxexp.data.shapes import COLORS, SHAPES, Scene, draw_scene
from fluxexp.data.shapes.captions import target_caption
from fluxexp.data.shapes.paint import paint_background, paint_object
from fluxexp.data.shapes.palette import MASKED_GRAY, REGION_KINDS
from fluxexp.data.shapes.scene_layout import lay_out
from fluxexp.data.shapes.styles import STYLES, Style
from fluxexp.data.stable_random import StableRandom
from tests.data.making import array, assert_checks_index, assert_threads_agree, content, keys_of

GOLDEN = {
    (0, 128, 128): "473d6752233035ff7c330b0c620b99af23fb5b30ab2b959a86acd24047c97f57",
    (1, 128, 128): "bd3e2d1ac806d32788ab54f2e91d52fb117fef7706a17eb0d81105132b6fd91f",
    (2, 128, 128): "51c0a4e4a65d3084da899a59831864a642173bdc5106ff9a286c11652c4fb88d",
    (0, 96, 160): "65d02bc1c600f0e8a2adc02908bbce4867b70ea8811fcc9b156ce5d69839fdba",
}
"""SHA-256 of truth, mask and caption of scenes of series 0, by (index, height, width)."""


def shapes(
    length: int = 6,
    size: tuple[int, int] = (64, 64),
    seed: int = 0,
    limit: int | None = None,
    *,
    further: bool = False,
    style: Style | None = None,
) -> Dataset:
    height, width = size
    return open_dataset(
        ShapesDatasetConfig(
            kind="shapes",
            length=length,
            height=height,
            width=width,
            seed=seed,
            limit=limit,
            placement="fit",
            controls="outlines" if further else None,
            references="scenes" if further else None,
            style=style,
        )
    )


def digest(scene: Scene) -> str:
    return hashlib.sha256(scene.truth.tobytes() + scene.mask.tobytes() + scene.caption.encode()).hexdigest()


def has_color(scene: Scene, color: str) -> NDArray[np.bool_]:
    matches: NDArray[np.bool_] = (scene.truth == np.array(COLORS[color], np.uint8)).all(axis=-1)
    return matches


@pytest.mark.parametrize(("index", "height", "width"), GOLDEN)
def test_scenes_never_change_between_versions(index: int, height: int, width: int) -> None:
    assert digest(draw_scene(0, index, height, width)) == GOLDEN[index, height, width]


def test_random_choices_never_change_between_versions() -> None:
    rng = StableRandom("shapes", 0, 0)
    assert [rng.below(1000) for _ in range(6)] == [150, 191, 865, 873, 245, 721]
    assert StableRandom("shapes", 0, 1).below(1000) != StableRandom("shapes", 0, 0).below(1000)


@given(st.text(), st.lists(st.integers(), max_size=9))
def test_random_choices_stay_in_their_bounds(part: str, options: list[int]) -> None:
    rng = StableRandom(part)
    assert sorted(rng.shuffle(options)) == sorted(options)
    assert 2 <= rng.uniform(2, 3) < 3
    assert 0 <= rng.below(7) < 7
    assert rng.pick("abc") in "abc"
    assert not rng.chance(0)
    assert rng.chance(1)


@pytest.mark.parametrize("index", range(40))
def test_the_caption_names_the_color_and_the_shape_of_the_target(index: int) -> None:
    scene = draw_scene(0, index, 128, 128)
    behind = {color: int((has_color(scene, color) & (scene.mask == 255)).sum()) for color in COLORS}
    assert scene.traits["color"] == max(behind, key=behind.__getitem__)
    words = scene.caption.replace(",", "").split()
    assert [word for word in words if word in COLORS] == [scene.traits["color"]]
    assert [word for word in words if word in SHAPES] == [scene.traits["shape"]]


@pytest.mark.parametrize("index", range(40))
def test_the_mask_covers_the_target_and_leaves_the_rest(index: int) -> None:
    scene = draw_scene(0, index, 128, 128)
    outside = scene.mask == 0
    assert not (has_color(scene, scene.traits["color"]) & outside).any()
    assert 0.02 < 1 - outside.mean() < 0.6
    named = [color for color in COLORS if f" {color} " in scene.traits["scene"]]
    assert len(named) >= 2
    assert all(has_color(scene, color).any() for color in named)


@pytest.mark.parametrize(("index", "length"), [(index, length) for length in (16, 64) for index in range(20)])
def test_no_pixel_of_the_target_is_unmasked(index: int, length: int) -> None:
    rng = StableRandom("shapes", 0, index)
    layout = lay_out(rng, 1.0, 1.0)
    target_caption(rng, layout)
    without = paint_background(layout, rng, length, length)
    for item in layout.others:
        paint_object(without, item)
    scene = draw_scene(0, index, length, length)
    changed = (scene.truth != without).any(axis=-1)
    assert changed.any()
    assert (scene.mask[changed] == 255).all()


def test_scenes_use_all_shapes_colors_and_masks() -> None:
    scenes = [draw_scene(3, index, 32, 32) for index in range(150)]
    assert {scene.traits["shape"] for scene in scenes} == set(SHAPES)
    assert {scene.traits["color"] for scene in scenes} == set(COLORS)
    assert {scene.traits["mask"] for scene in scenes} == set(REGION_KINDS)
    assert len({digest(scene) for scene in scenes}) == len(scenes)
    assert digest(draw_scene(4, 0, 32, 32)) != digest(scenes[0])


@pytest.mark.parametrize("index", range(12))
def test_a_scene_is_the_same_at_any_resolution(index: int) -> None:
    small, large = draw_scene(0, index, 128, 128), draw_scene(0, index, 256, 256)
    assert (small.caption, small.traits) == (large.caption, large.traits)
    halved = large.truth.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
    other = draw_scene(0, index + 1, 128, 128)
    assert np.abs(halved - small.truth).mean() < 2
    assert np.abs(halved - other.truth).mean() > 8
    assert (large.mask[::2, ::2] != small.mask).mean() < 0.02


@settings(max_examples=40)
@given(st.integers(0, 2**63 - 1), st.integers(0, 10**9), st.integers(1, 12), st.integers(1, 12))
def test_scenes_can_have_any_size(seed: int, index: int, rows: int, columns: int) -> None:
    scene = draw_scene(seed, index, 16 * rows, 16 * columns)
    assert scene.truth.shape == scene.masked_scene.shape == (16 * rows, 16 * columns, 3)
    assert scene.mask.shape == (16 * rows, 16 * columns)
    assert scene.truth.dtype == scene.masked_scene.dtype == scene.mask.dtype == np.uint8
    assert set(np.unique(scene.mask)) == {0, 255}


@pytest.mark.parametrize(("height", "width"), [(16, 2048), (2048, 16), (512, 768)])
def test_scenes_can_be_narrow_or_large(height: int, width: int) -> None:
    assert draw_scene(0, 0, height, width).truth.shape == (height, width, 3)


def test_samples_contain_the_scene() -> None:
    dataset = shapes(size=(64, 96))
    for index in range(len(dataset)):
        sample, scene = dataset.load(index), draw_scene(0, index, 64, 96)
        assert sample.key == dataset.key(index)
        assert sample.prompt == scene.caption
        assert sample.size == (64, 96)
        assert sample.traits == scene.traits
        image, mask, truth = array(sample.image), array(sample.mask), array(sample.truth)
        assert (truth == scene.truth).all()
        assert (mask == scene.mask).all()
        assert (image[mask == 255] == MASKED_GRAY).all()
        assert (image[mask == 0] == truth[mask == 0]).all()


def test_a_sample_does_not_depend_on_the_length() -> None:
    assert content(shapes(length=3).load(2)) == content(shapes(length=10**9).load(2))
    assert len(shapes(length=10**9)) == 10**9
    assert len(shapes(length=6, limit=2)) == 2
    assert len(shapes(length=6, limit=8)) == 6


def test_keys_are_unique_over_series_sizes_and_scenes() -> None:
    datasets = [shapes(), shapes(seed=1), shapes(size=(64, 80)), shapes(size=(80, 64))]
    keys = [key for dataset in datasets for key in keys_of(dataset)]
    assert len(set(keys)) == len(keys) == 24


def test_loading_is_thread_safe_and_checks_the_index() -> None:
    assert_threads_agree(shapes())
    assert_checks_index(shapes())


@pytest.mark.parametrize("style", STYLES)
def test_a_style_changes_only_the_ground_truth_of_the_target(style: Style) -> None:
    for index in range(6):
        plain, styled = (shapes(further=True, style=kind).load(index) for kind in (None, style))
        assert (plain.key, plain.prompt, plain.traits) == (styled.key, styled.prompt, styled.traits)
        same = [(sample.image, sample.mask, sample.control_image, *sample.references) for sample in (plain, styled)]
        assert all(np.array_equal(array(one), array(other)) for one, other in zip(*same, strict=True))
        changed = (array(plain.truth) != array(styled.truth)).any(axis=2)
        assert changed.sum() > 20
        assert not changed[array(plain.mask) == 0].any()


def test_an_outlined_object_shows_the_background_inside_and_a_pastel_one_is_pale() -> None:
    plain, outlined, pastel = (draw_scene(0, 3, 128, 128, style) for style in (None, "outlined", "pastel"))
    pink = [has_color(scene, "pink").sum() for scene in (plain, outlined, pastel)]
    assert pink[0] > 2 * pink[1] > 0
    assert pink[2] == 0
    assert (pastel.truth == (255, 204, 231)).all(axis=2).sum() > 0.8 * pink[0]
