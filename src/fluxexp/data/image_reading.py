"""Reads images of any mode and bit depth, with or without transparency, and applies their EXIF orientation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base

from fluxexp.errors import SampleError

EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_THRESHOLD = 128
_TRANSPOSES = {
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transformation that makes an image upright, for each EXIF orientation that swaps width and height."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An upright image.

    `rgb` has a white background where the image is transparent. `alpha` is the alpha channel (mode L), if it has one.
    `stored_size` is the (width, height) in the file. `transpose` is the transformation that made the image upright, if
    it swapped width and height.
    """

    rgb: Image.Image
    alpha: Image.Image | None
    stored_size: tuple[int, int]
    transpose: Image.Transpose | None


def picture_size(path: Path) -> tuple[int, int] | None:
    """Height and width in pixels from the file's header; None if the file cannot be read."""
    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None


def read_image(path: Path) -> Picture:
    """Read the image at `path`; for an animation, its first frame.

    Raises:
        SampleError: the file does not exist, or is not a complete image.
    """
    with _reading(path):
        image, stored_size, transpose = _open(path)
        if not image.has_transparency_data:
            return Picture(rgb=_to_rgb(image), alpha=None, stored_size=stored_size, transpose=transpose)
        rgba = _to_rgba(image)
        alpha = rgba.getchannel("A")
        canvas = Image.new("RGB", rgba.size, "white")
        canvas.paste(rgba, mask=alpha)
        return Picture(rgb=canvas, alpha=alpha, stored_size=stored_size, transpose=transpose)


def read_mask(path: Path, picture: Picture) -> Image.Image:
    """Read the mask at `path` at the size of `picture`, mode L with values 0 and 255. Light pixels are masked.

    If a mask has transparent pixels and all its visible pixels have one color, its alpha channel is the mask. A mask
    with the stored size of a `picture` that EXIF rotates comes from a program that ignores EXIF, and is rotated like
    the picture.

    Raises:
        SampleError: the file does not exist, or is not a complete image.
    """
    with _reading(path):
        image, _, _ = _open(path)
        gray = _visible_mask(_to_rgba(image)) if image.has_transparency_data else _to_rgb(image).convert("L")
        size = picture.rgb.size
        if picture.transpose is not None and gray.size == picture.stored_size != size:
            gray = gray.transpose(picture.transpose)
        if gray.size != size:
            gray = gray.resize(size, Image.Resampling.NEAREST)
        return binary(gray)


def alpha_as_mask(alpha: Image.Image) -> Image.Image:
    """A mask of the transparent pixels, mode L with values 0 and 255."""
    return binary(ImageOps.invert(alpha))


def binary(gray: Image.Image) -> Image.Image:
    """`gray` (mode L) with 255 for values from 128 on, and 0 for smaller values."""
    return gray.point(lambda value: 255 if value >= _THRESHOLD else 0)


def require_nonempty(mask: Image.Image, source: object) -> Image.Image:
    """Return `mask`.

    Raises:
        SampleError: no pixel of the mask is set.
    """
    if mask.getbbox() is None:
        raise SampleError(f"{source}: the mask is empty; mark the pixels to paint in white")
    return mask


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Converts every error to a SampleError, because decoders raise errors of any type on damaged data."""
    try:
        yield
    except FileNotFoundError:
        raise SampleError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise SampleError(f"{path}: is not an image that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise SampleError(f"{path}: is too large ({error})") from None
    except Exception as error:
        raise SampleError(f"{path}: cannot be read ({error})") from error


def _open(path: Path) -> tuple[Image.Image, tuple[int, int], Image.Transpose | None]:
    """The first frame at `path`, upright; its (width, height) in the file; the transformation if it swaps the two."""
    with Image.open(path) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
        return upright, image.size, _TRANSPOSES.get(image.getexif().get(Base.Orientation, 1))


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB with 8 bits per channel."""
    return (_to_gray(image) if _is_deep(image) else image).convert("RGB")


def _to_rgba(image: Image.Image) -> Image.Image:
    """RGBA with 8 bits per channel, for an image with transparency."""
    if _is_deep(image):
        hidden = np.asarray(image) == image.info["transparency"]
        rgba = _to_gray(image).convert("RGBA")
        rgba.putalpha(Image.fromarray(np.where(hidden, np.uint8(0), np.uint8(255))))
        return rgba
    return image.convert("RGBA")


def _is_deep(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def _to_gray(image: Image.Image) -> Image.Image:
    """Scale a grayscale image with more than 8 bits to mode L. Pillow's own conversion would clip it to white.

    Floats range from 0 to 1, or from 0 to 255 if any value is above 1. 32-bit integers contain 16-bit values, or 8-bit
    values if none is above 255.

    Raises:
        ValueError: the integers have a wider range, so that their white level is unknown.
    """
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        scale = 255.0 if values.max(initial=0.0) <= 1.0 else 1.0
        return Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8))
    deep = np.asarray(image, dtype=np.int64)
    low, high = int(deep.min()), int(deep.max())
    if low < 0 or high > 65535:
        raise ValueError(f"its values range from {low} to {high}; save it with 8 or 16 bits")
    if image.mode == "I" and high <= 255:
        return Image.fromarray(deep.astype(np.uint8))
    # 65535 / 255 = 257: maps white to white, rounded to nearest.
    return Image.fromarray(((deep + 128) // 257).astype(np.uint8))


def _visible_mask(rgba: Image.Image) -> Image.Image:
    """The alpha channel if pixels are transparent and the visible ones have one color; else the colors over black."""
    alpha = rgba.getchannel("A")
    pixels = np.asarray(rgba)
    visible = pixels[pixels[..., 3] > 0, :3]
    if bool((pixels[..., 3] < 255).any()) and bool((visible == visible[:1]).all()):
        return alpha
    black = Image.new("L", rgba.size, 0)
    black.paste(rgba.convert("RGB").convert("L"), mask=alpha)
    return black
