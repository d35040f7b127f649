from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.ExifTags import Base

from fluxexp.data.image_reading import Picture, alpha_as_mask, read_image
from fluxexp.data.mask_reading import read_mask
from fluxexp.errors import SampleError
from tests.data.making import array, noise, spot, write

HALVES = np.repeat([[0, 255]], 8, axis=1).repeat(12, axis=0).astype(np.uint8)
"""16 x 12 pixels: black on the left, white on the right."""


def halves() -> Image.Image:
    return Image.fromarray(HALVES)


def oriented(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[Base.Orientation] = value
    return exif


def stored_for(value: int, upright: Image.Image) -> Image.Image:
    """The stored pixels that EXIF orientation `value` transforms into `upright`."""
    flip = Image.Transpose
    undo = {
        2: flip.FLIP_LEFT_RIGHT,
        3: flip.ROTATE_180,
        4: flip.FLIP_TOP_BOTTOM,
        5: flip.TRANSPOSE,
        6: flip.ROTATE_90,
        7: flip.TRANSVERSE,
        8: flip.ROTATE_270,
    }
    return upright.transpose(undo[value]) if value in undo else upright


def plain(size: tuple[int, int] = (16, 12)) -> Picture:
    """An image for a mask of this size."""
    return Picture(rgb=Image.new("RGB", size), alpha=None, stored_size=size, transpose=None)


def image_error(path: Path) -> str:
    with pytest.raises(SampleError) as caught:
        read_image(path)
    return str(caught.value)


GRAY_FILES: dict[str, tuple[Image.Image, str]] = {
    "bits": (halves().convert("1"), "png"),
    "gray": (halves(), "png"),
    "gray_alpha": (halves().convert("LA"), "png"),
    "palette": (halves().convert("P"), "png"),
    "rgb": (halves().convert("RGB"), "bmp"),
    "rgba": (halves().convert("RGBA"), "webp"),
    "gif": (halves(), "gif"),
    "cmyk_tiff": (halves().convert("RGB").convert("CMYK"), "tiff"),
    "ycbcr_tiff": (halves().convert("RGB").convert("YCbCr"), "tif"),
    "deep": (Image.fromarray(HALVES.astype(np.uint16) * 257), "png"),
    "deep_tiff": (Image.fromarray(HALVES.astype(np.uint16) * 257), "tif"),
    "deep_big_endian": (Image.frombytes("I;16B", (16, 12), (HALVES.astype(">u2") * 257).tobytes()), "tif"),
    "deep_pgm": (Image.fromarray(HALVES.astype(np.int32) * 257), "ppm"),
    "int_of_16_bits": (Image.fromarray(HALVES.astype(np.int32) * 257), "tif"),
    "int_of_8_bits": (Image.fromarray(HALVES.astype(np.int32)), "tif"),
    "float_to_1": (Image.fromarray(HALVES.astype(np.float32) / 255), "tif"),
    "float_to_255": (Image.fromarray(HALVES.astype(np.float32)), "tif"),
    "float_beyond": (Image.fromarray(np.where(HALVES > 0, np.inf, -np.inf).astype(np.float32)), "tif"),
    "float_nan": (Image.fromarray(np.where(HALVES > 0, 1, np.nan).astype(np.float32)), "tif"),
}


@pytest.mark.parametrize("name", GRAY_FILES)
def test_black_and_white_are_read_in_every_mode(name: str, tmp_path: Path) -> None:
    image, extension = GRAY_FILES[name]
    path = write(tmp_path / f"{name}.{extension}", image, **({"lossless": True} if extension == "webp" else {}))
    picture = read_image(path)
    assert picture.rgb.mode == "RGB"
    assert (array(picture.rgb) == HALVES[..., None]).all()
    mask = read_mask(path, plain())
    assert mask.mode == "L"
    assert (array(mask) == HALVES).all()


@pytest.mark.parametrize("mode", ["uint16", "int32"])
def test_high_bit_depths_keep_their_order(mode: str, tmp_path: Path) -> None:
    ramp = np.arange(0, 65536, 257, dtype=mode).reshape(16, 16)
    rgb = array(read_image(write(tmp_path / "ramp.tif", Image.fromarray(ramp))).rgb)
    assert (rgb[..., 0] == np.arange(256).reshape(16, 16)).all()


@pytest.mark.parametrize(("low", "high"), [(-1, 255), (0, 65536), (0, 2**31 - 1)])
def test_integers_with_unknown_white_level_are_refused(low: int, high: int, tmp_path: Path) -> None:
    wide = np.linspace(low, high, 64).astype(np.int32).reshape(8, 8)
    path = write(tmp_path / "depth.tif", Image.fromarray(wide))
    assert (
        f"depth.tif: cannot be read (its values range from {low} to {high}; save it with 8 or 16 bits)"
        in image_error(path)
    )


def test_a_cmyk_jpeg_keeps_its_colors(tmp_path: Path) -> None:
    red = Image.new("RGB", (16, 16), (220, 30, 40)).convert("CMYK")
    picture = read_image(write(tmp_path / "print.jpg", red, quality=95))
    assert np.abs(array(picture.rgb).astype(int) - (220, 30, 40)).max() < 8
    assert picture.alpha is None


def test_a_palette_keeps_its_colors(tmp_path: Path) -> None:
    few = Image.fromarray(np.tile(np.array([[(200, 0, 0), (0, 90, 0), (0, 0, 70)]], np.uint8), (4, 2, 1)))
    path = write(tmp_path / "few.png", few.quantize(3))
    assert (array(read_image(path).rgb) == array(few)).all()


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    path = write(tmp_path / "moving.gif", frames[0], save_all=True, append_images=frames[1:], duration=40)
    assert read_image(path).rgb.getpixel((4, 4)) == (255, 0, 0)


def with_transparency(kind: str, path: Path) -> Path:
    """A red image of 8 x 8 pixels, with a transparent left half."""
    alpha = Image.fromarray(np.repeat([[0, 255]], 4, axis=1).repeat(8, axis=0).astype(np.uint8))
    red = Image.new("RGB", (8, 8), "red")
    red.putalpha(alpha)
    match kind:
        case "rgba":
            return write(path.with_suffix(".png"), red)
        case "webp":
            return write(path.with_suffix(".webp"), red, lossless=True)
        case "palette_entries":
            return write(path.with_suffix(".png"), red.quantize(4))
        case "gif":
            return write(path.with_suffix(".gif"), red)
        case "one_color":
            black = red.convert("RGB")
            black.paste((1, 2, 3), (0, 0, 4, 8))
            return write(path.with_suffix(".png"), black, transparency=(1, 2, 3))
        case _:
            raise AssertionError(kind)


@pytest.mark.parametrize("kind", ["rgba", "webp", "palette_entries", "gif", "one_color"])
def test_transparent_pixels_are_white_and_masked(kind: str, tmp_path: Path) -> None:
    picture = read_image(with_transparency(kind, tmp_path / "clear"))
    assert picture.alpha is not None
    rgb, mask = array(picture.rgb), array(alpha_as_mask(picture.alpha))
    assert (rgb[:, :4] == 255).all()
    assert (rgb[:, 4:] == (255, 0, 0)).all()
    assert (mask[:, :4] == 255).all()
    assert (mask[:, 4:] == 0).all()


@pytest.mark.parametrize(("mode", "hidden"), [("L", 7), ("I;16", 700)])
def test_a_transparent_gray(mode: str, hidden: int, tmp_path: Path) -> None:
    pixels = np.full((8, 8), 65535 if mode == "I;16" else 255, np.uint16 if mode == "I;16" else np.uint8)
    pixels[:, :4] = hidden
    picture = read_image(write(tmp_path / "clear.png", Image.fromarray(pixels), transparency=hidden))
    assert picture.alpha is not None
    assert (array(alpha_as_mask(picture.alpha)) == np.where(pixels == hidden, 255, 0)).all()
    assert (array(picture.rgb) == 255).all()


def test_an_opaque_image_has_no_alpha(tmp_path: Path) -> None:
    assert read_image(write(tmp_path / "a.png")).alpha is None


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("extension", ["png", "webp", "tif"])
def test_exif_orientation_is_applied(value: int, extension: str, tmp_path: Path) -> None:
    upright = noise(24, 16)
    options: dict[str, Any] = {"lossless": True} if extension == "webp" else {}
    path = write(tmp_path / f"photo.{extension}", stored_for(value, upright), exif=oriented(value), **options)
    assert (array(read_image(path).rgb) == array(upright)).all()


@pytest.mark.parametrize("value", range(5, 9))
def test_a_mask_of_a_rotated_photo_can_be_rotated_or_not(value: int, tmp_path: Path) -> None:
    upright = spot(24, 16, (3, 1, 9, 5))
    picture = read_image(write(tmp_path / "photo.png", stored_for(value, noise(24, 16)), exif=oriented(value)))
    stored = stored_for(value, upright)
    by_exif = write(tmp_path / "by_exif.png", stored, exif=oriented(value))
    without_exif = write(tmp_path / "without_exif.png", stored)
    turned = write(tmp_path / "turned.png", upright)
    for path in (by_exif, without_exif, turned):
        assert (array(read_mask(path, picture)) == array(upright)).all(), path.name


def test_a_mask_of_another_size_is_resized(tmp_path: Path) -> None:
    path = write(tmp_path / "mask.png", spot(12, 8, (3, 2, 6, 4)))
    assert (array(read_mask(path, plain((48, 32)))) == array(spot(48, 32, (12, 8, 24, 16)))).all()
    assert read_mask(path, plain((1000, 667))).size == (1000, 667), "the aspect ratio of whole pixels"
    for size in ((48, 24), (8, 12), (24, 24)):
        with pytest.raises(SampleError, match=f"is 12x8 pixels, but its image is {size[0]}x{size[1]}"):
            read_mask(path, plain(size))


def test_light_grays_are_masked(tmp_path: Path) -> None:
    path = write(tmp_path / "mask.png", Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8)))
    assert array(read_mask(path, plain((4, 1)))).tolist() == [[0, 0, 255, 255]]


def rgba(colors: Any, alphas: Any) -> Image.Image:
    """An image of 2 x 1 pixels."""
    return Image.fromarray(np.array([[(*colors[0], alphas[0]), (*colors[1], alphas[1])]], np.uint8))


@pytest.mark.parametrize(
    ("colors", "alphas", "painted"),
    [
        (((0, 0, 0), (0, 0, 0)), (0, 255), [0, 255]),  # black on transparency: alpha is the mask
        (((255, 255, 255), (255, 255, 255)), (0, 255), [0, 255]),
        (((0, 0, 0), (255, 0, 0)), (0, 255), [0, 255]),  # a red brush, darker than the threshold
        (((0, 0, 0), (255, 255, 255)), (255, 255), [0, 255]),  # an opaque mask
        (((0, 0, 0), (0, 0, 0)), (255, 255), [0, 0]),  # opaque and black: empty
        (((255, 255, 255), (255, 255, 255)), (255, 255), [255, 255]),
        (((255, 255, 255), (0, 0, 0)), (0, 0), [0, 0]),  # fully transparent
    ],
)
def test_masks_with_an_alpha_channel(colors: Any, alphas: Any, painted: list[int], tmp_path: Path) -> None:
    path = write(tmp_path / "mask.png", rgba(colors, alphas))
    assert array(read_mask(path, plain((2, 1)))).tolist() == [painted]


def test_gray_strokes_on_transparency_are_composited_over_black(tmp_path: Path) -> None:
    pixels = np.array([[(255, 255, 255, 0), (255, 255, 255, 255), (0, 0, 0, 255)]], np.uint8)
    path = write(tmp_path / "mask.png", Image.fromarray(pixels))
    assert array(read_mask(path, plain((3, 1)))).tolist() == [[0, 255, 0]]


def test_errors_name_files_that_are_not_images(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("a cat")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    assert f"{tmp_path / 'text.png'}: is not an image" in image_error(tmp_path / "text.png")
    assert f"{tmp_path / 'empty.png'}: is not an image" in image_error(tmp_path / "empty.png")
    assert f"{tmp_path / 'folder.png'}: is a folder" in image_error(tmp_path / "folder.png")
    assert f"{tmp_path / 'none.png'}: no such file" in image_error(tmp_path / "none.png")
    with pytest.raises(SampleError, match=r"none\.png: no such file"):
        read_mask(tmp_path / "none.png", plain())


@pytest.mark.parametrize("extension", ["jpg", "png", "bmp", "tif", "webp"])
def test_a_truncated_image_is_an_error(extension: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"half.{extension}", noise(64, 64))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert f"half.{extension}: " in image_error(path)


def test_a_lab_tiff_keeps_its_colors(tmp_path: Path) -> None:
    red = Image.new("RGB", (8, 8), (220, 30, 40)).convert("LAB")
    rgb = array(read_image(write(tmp_path / "lab.tif", red)).rgb)
    assert np.abs(rgb.astype(int) - (220, 30, 40)).max() < 4


def test_an_image_too_large_for_memory_is_refused(tmp_path: Path) -> None:
    header = b"P6\n100000 100000\n255\n"
    (tmp_path / "bomb.ppm").write_bytes(header)
    assert "bomb.ppm: has 10000000000 pixels, more than dataset.max_image_megapixels=100" in image_error(
        tmp_path / "bomb.ppm"
    )


def encoded(extension: str, options: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    noise(20, 12).save(buffer, extension, **options)
    return buffer.getvalue()


FORMATS = {
    "jpeg": encoded("jpeg", {"exif": oriented(6)}),
    "png": encoded("png", {"exif": oriented(6)}),
    "gif": encoded("gif", {}),
    "bmp": encoded("bmp", {}),
    "ppm": encoded("ppm", {}),
    "tiff": encoded("tiff", {"compression": "tiff_lzw", "exif": oriented(6)}),
    "webp": encoded("webp", {"exif": oriented(6)}),
}


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(FORMATS)),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
    st.integers(0, 200),
)
def test_damaged_files_give_a_sample_error_or_an_image(
    tmp_path: Path, extension: str, changes: list[tuple[int, int]], head: int
) -> None:
    data = bytearray(FORMATS[extension])
    for position, value in changes:
        data[position % max(head, 1) if head < len(data) else position % len(data)] = value
    path = tmp_path / f"damaged.{extension}"
    path.write_bytes(data)
    try:
        assert read_image(path).rgb.mode == "RGB"
    except SampleError as error:
        message = str(error)
        assert str(path) in message
