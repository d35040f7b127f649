"""Reads images that Pillow can decode, with or without transparency, and applies their EXIF orientation."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base

from fluxexp.data.colors import is_deep, rgb_profile, to_rgb, to_rgba
from fluxexp.data.sources import File, open_file
from fluxexp.errors import SampleError
from fluxexp.transparency import over_white

_READ = frozenset(
    {"AVIF", "BLP", "BMP", "CUR", "DCX", "DDS", "DIB", "FITS", "FLI", "FTEX", "GBR", "GIF", "ICNS", "ICO", "IM", "IMT"}
    | {"IPTC", "JPEG", "JPEG2000", "MCIDAS", "MPO", "MSP", "PCD", "PCX", "PIXAR", "PNG", "PPM", "PSD", "QOI", "SGI"}
    | {"SPIDER", "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM", "XVTHUMB"}
)
"""Formats that are read. EPS, which is a program, is not one of them: a dataset never runs code."""
OTHER_EXTENSIONS = frozenset(
    {".ai", ".arw", ".cr2", ".cr3", ".dng", ".emf", ".eps", ".exr", ".hdr", ".heic", ".heif", ".jxl", ".nef", ".orf"}
    | {".pdf", ".ps", ".raf", ".raw", ".rw2", ".svg", ".wmf"}
)
"""Extensions of pictures that Pillow does not read."""
DEFAULT_MAX_MEGAPIXELS = 100.0
_THRESHOLD = 128
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transformation that makes an image upright, for each EXIF orientation."""
# `open_upright` refuses large images itself.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An upright image.

    `rgb` has a white background where the image is transparent. If it has transparent pixels, `rgba` has their colors,
    and `alpha` is its alpha channel (mode L). `icc_profile` describes the colors; None means sRGB. `is_reduced` says
    whether the file has more than 8 bits per channel. `stored_size` is the (width, height) in the file. `transpose` is
    the transformation that made the image upright, if any.
    """

    rgb: Image.Image
    alpha: Image.Image | None
    stored_size: tuple[int, int]
    transpose: Image.Transpose | None
    rgba: Image.Image | None = None
    icc_profile: bytes | None = None
    is_reduced: bool = False


@dataclass(frozen=True, slots=True)
class OpenedImage:
    """The first frame of a file, decoded and upright. The other fields are as in `Picture`."""

    image: Image.Image
    stored_size: tuple[int, int]
    transpose: Image.Transpose | None
    is_reduced: bool


@cache
def readable_formats() -> tuple[str, ...]:
    """The formats that are read, as Pillow names them."""
    Image.init()
    return tuple(name for name in Image.OPEN if name in _READ)


@cache
def readable_extensions() -> frozenset[str]:
    """The extensions of image files that are read, in lower case."""
    formats = readable_formats()
    return frozenset(extension for extension, name in Image.registered_extensions().items() if name in formats)


def picture_size(path: File) -> tuple[int, int] | None:
    """Height and width in pixels from the file's header; None if the file cannot be read."""
    try:
        with open_file(path) as stream, Image.open(stream, formats=readable_formats()) as picture:
            return picture.height, picture.width
    except (
        SampleError,
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ):
        return None


def read_image(path: File, max_megapixels: float = DEFAULT_MAX_MEGAPIXELS) -> Picture:
    """Read the image at `path`; for an animation, its first frame.

    Raises:
        SampleError: the file does not exist, is not a regular file or not a complete image, or has more pixels.
    """
    with reading(path):
        opened = open_upright(path, max_megapixels)
        image = opened.image
        rgba = to_rgba(image) if image.has_transparency_data else None
        return Picture(
            rgb=to_rgb(image) if rgba is None else over_white(rgba),
            alpha=None if rgba is None else rgba.getchannel("A"),
            stored_size=opened.stored_size,
            transpose=opened.transpose,
            rgba=rgba,
            icc_profile=rgb_profile(image),
            is_reduced=opened.is_reduced,
        )


def alpha_as_mask(alpha: Image.Image) -> Image.Image:
    """A mask of the transparent pixels, mode L with values 0 and 255."""
    return binary(ImageOps.invert(alpha))


def binary(gray: Image.Image) -> Image.Image:
    """`gray` (mode L) with 255 for values from 128 on, and 0 for smaller values."""
    return gray.point(lambda value: 255 if value >= _THRESHOLD else 0)


@contextmanager
def reading(path: File) -> Iterator[None]:
    """Converts every error to a SampleError, because decoders raise errors of any type on damaged data."""
    try:
        yield
    except FileNotFoundError:
        raise SampleError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise SampleError(f"{path}: is not an image that Pillow can read") from None
    except SampleError:
        raise
    except Exception as error:
        raise SampleError(f"{path}: cannot be read ({error})") from error


def open_upright(path: File, max_megapixels: float) -> OpenedImage:
    """Decode the first frame at `path`, and apply its EXIF orientation. Raises the errors of decoders."""
    # Pillow checks with this limit what `_require_size` does not see: pictures inside of other files, such as icons.
    Image.MAX_IMAGE_PIXELS = round(max_megapixels * 1e6)
    try:
        with open_file(path) as stream, Image.open(stream, formats=readable_formats()) as image:
            _require_size(image.size, path, max_megapixels)
            is_reduced = _has_deep_channels(image)
            image.load()
            transpose = _TRANSPOSES.get(_orientation(image))
            upright = image.copy() if transpose is None else image.transpose(transpose)
            return OpenedImage(upright, image.size, transpose, is_reduced or is_deep(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        pixels = re.search(r"\d+ pixels", str(error))
        raise _too_large(path, pixels[0] if pixels else "too many pixels", max_megapixels) from None


def _require_size(size: tuple[int, int], path: File, max_megapixels: float) -> None:
    """Refuse an image before it is decoded: a file of a few kilobytes can need gigabytes of memory."""
    megapixels = size[0] * size[1] / 1e6
    if megapixels > max_megapixels:
        raise _too_large(path, f"{size[0]}x{size[1]} pixels", max_megapixels)


def _too_large(path: File, size: str, max_megapixels: float) -> SampleError:
    hint = "scale it down, or raise the limit if there is enough memory"
    return SampleError(f"{path}: has {size}, more than dataset.max_image_megapixels={max_megapixels:g}; {hint}")


def _orientation(image: Image.Image) -> Any:
    """The EXIF orientation, 1 to 8. Only this tag is needed, so damage in other tags is not an error."""
    try:
        value = image.getexif().get(Base.Orientation, 1)
    except Exception:  # the parser raises errors of any type on damaged tags, and the pixels are sound
        return 1
    return value[0] if isinstance(value, tuple) and value else value


def _has_deep_channels(image: Image.Image) -> bool:
    """Whether the decoder reduces channels of 16 bits to 8, as it does for color. Called before the image is loaded."""
    return any(";16" in str(tile.args) for tile in getattr(image, "tile", ()))
