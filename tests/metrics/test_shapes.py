from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from fluxexp.data.shapes import Scene, draw_scene
from fluxexp.data.shapes.palette import TONES
from fluxexp.metrics.outlines import dilate
from fluxexp.metrics.shape_reading import ShapeReading, background_tone, read_object

SCENES = 40


def asked(scene: Scene) -> tuple[str, str]:
    return scene.traits["color"], scene.traits["shape"]


def read(scene: Scene, picture: NDArray[np.uint8] | None = None) -> ShapeReading:
    return read_object(scene.truth if picture is None else picture, scene.mask)


@pytest.mark.parametrize(("height", "width"), [(128, 128), (96, 160), (256, 256)])
def test_drawn_objects_are_recognized(height: int, width: int) -> None:
    for index in range(SCENES):
        scene = draw_scene(3, index, height, width)
        reading = read(scene)
        assert (reading.color, reading.shape) == asked(scene), index
        assert reading.overlaps[scene.traits["shape"]] > 0.75


def test_objects_in_a_blurred_image_are_recognized() -> None:
    right = 0
    for index in range(SCENES):
        scene = draw_scene(3, index, 128, 128)
        soft = np.asarray(Image.fromarray(scene.truth).filter(ImageFilter.GaussianBlur(0.8)))
        reading = read(scene, soft)
        right += (reading.color, reading.shape) == asked(scene)
    assert right >= 0.95 * SCENES


def test_noise_and_empty_regions_are_not_recognized_as_the_target() -> None:
    rng = np.random.default_rng(0)
    right = 0
    for index in range(SCENES):
        scene = draw_scene(3, index, 128, 128)
        noise = np.where(scene.mask[..., None] > 0, rng.integers(0, 256, scene.truth.shape), scene.truth)
        right += (read(scene, noise.astype(np.uint8)).shape) == scene.traits["shape"]
        empty = np.where(scene.mask[..., None] > 0, np.uint8(128), scene.truth)
        right += read(scene, empty).shape == scene.traits["shape"]
    assert right <= 0.3 * 2 * SCENES


def test_without_an_object_none_is_recognized() -> None:
    empty = np.full((128, 128, 3), TONES["grey"], np.uint8)
    masked_region = np.zeros((128, 128), np.uint8)
    masked_region[30:90, 30:90] = 255
    assert read_object(empty, masked_region) == ShapeReading(None, None, {})
    assert read_object(empty) == ShapeReading(None, None, {})


def test_an_object_of_a_given_color_is_found_among_others() -> None:
    for index in range(SCENES):
        scene = draw_scene(3, index, 128, 128)
        color, shape = asked(scene)
        assert read_object(scene.truth, color=color).shape == shape, index


def test_a_missing_color_is_not_found() -> None:
    scene = draw_scene(3, 0, 128, 128)
    there = scene.traits["scene"]
    missing = next(color for color in ("red", "cyan", "yellow", "purple", "green", "blue") if color not in there)
    assert read_object(scene.truth, color=missing).shape is None


@pytest.mark.parametrize("radius", [0, 1, 2, 4, 7])
@pytest.mark.parametrize("shape", [(5, 9), (30, 31), (1, 20)])
def test_dilation_by_a_disc(radius: int, shape: tuple[int, int]) -> None:
    silhouette = np.random.default_rng(radius).random(shape) < 0.05
    rows, columns = np.nonzero(silhouette)
    down, across = np.indices(shape)
    squared = (down[..., None] - rows) ** 2 + (across[..., None] - columns) ** 2
    assert np.array_equal(dilate(silhouette, radius), (squared <= radius**2).any(axis=-1))


def test_a_known_background_changes_nothing() -> None:
    for index in range(8):
        scene = draw_scene(3, index, 96, 96)
        tone = background_tone(scene.truth, scene.mask > 127)
        assert read_object(scene.truth, scene.mask, tone=tone) == read_object(scene.truth, scene.mask)
