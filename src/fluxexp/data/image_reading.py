"""Reads pictures as people have them: any mode, any bit depth, turned by EXIF, with or without transparency."""

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
_TURNS = {
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What stands a picture of this EXIF orientation upright, of those that swap width and height."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An upright picture as RGB, over white where it is transparent, and its alpha channel (L) if it has one.

    `stored` is its size (width, height) in the file, and `turn` what made it upright where that swaps the two.
    """

    rgb: Image.Image
    alpha: Image.Image | None
    stored: tuple[int, int]
    turn: Image.Transpose | None


def picture_size(path: Path) -> tuple[int, int] | None:
    """Height and width as the file's header says; None for a file that cannot be read."""
    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None


def read_image(path: Path) -> Picture:
    """The picture at `path`, of an animation the first frame.

    Raises:
        SampleError: there is no such file, or it is not a whole picture.
    """
    with _reading(path):
        image, stored, turn = _open(path)
        if not image.has_transparency_data:
            return Picture(rgb=_to_rgb(image), alpha=None, stored=stored, turn=turn)
        rgba = _to_rgba(image)
        alpha = rgba.getchannel("A")
        canvas = Image.new("RGB", rgba.size, "white")
        canvas.paste(rgba, mask=alpha)
        return Picture(rgb=canvas, alpha=alpha, stored=stored, turn=turn)


def read_mask(path: Path, picture: Picture) -> Image.Image:
    """The mask at `path` as L with 0 and 255, brought to the size of `picture`: light pixels are painted.

    A mask that is drawn in an alpha channel (what is visible has one colour) is read from there. One that has the size
    that `picture` has in its file was made by something that does not know EXIF, and is turned like the picture.

    Raises:
        SampleError: there is no such file, or it is not a whole picture.
    """
    with _reading(path):
        image, _, _ = _open(path)
        grey = _visible_mask(_to_rgba(image)) if image.has_transparency_data else _to_rgb(image).convert("L")
        size = picture.rgb.size
        if picture.turn is not None and grey.size == picture.stored != size:
            grey = grey.transpose(picture.turn)
        if grey.size != size:
            grey = grey.resize(size, Image.Resampling.NEAREST)
        return binary(grey)


def alpha_as_mask(alpha: Image.Image) -> Image.Image:
    """Transparent pixels are painted: L with 0 and 255."""
    return binary(ImageOps.invert(alpha))


def binary(grey: Image.Image) -> Image.Image:
    """`grey` (L) with 255 from 128 up, else 0."""
    return grey.point(lambda value: 255 if value >= _THRESHOLD else 0)


def require_something_to_paint(mask: Image.Image, source: object) -> Image.Image:
    """`mask` itself.

    Raises:
        SampleError: no pixel of it is set.
    """
    if mask.getbbox() is None:
        raise SampleError(f"{source}: the mask is empty, there is nothing to paint (white is painted, black is kept)")
    return mask


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong with a file's content is that sample's error: decoders raise anything on damaged data."""
    try:
        yield
    except FileNotFoundError:
        raise SampleError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise SampleError(f"{path}: not a picture that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise SampleError(f"{path}: too large ({error})") from None
    except Exception as error:
        raise SampleError(f"{path}: cannot be read ({error})") from error


def _open(path: Path) -> tuple[Image.Image, tuple[int, int], Image.Transpose | None]:
    """The first frame at `path`, decoded and turned upright; its size before; and the turn, if it swapped the sides."""
    with Image.open(path) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
        return upright, image.size, _TURNS.get(image.getexif().get(Base.Orientation, 1))


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB, 8 bits a channel."""
    return (_to_grey(image) if _is_deep(image) else image).convert("RGB")


def _to_rgba(image: Image.Image) -> Image.Image:
    """RGBA, 8 bits a channel, of a picture with transparency."""
    if _is_deep(image):
        hidden = np.asarray(image) == image.info["transparency"]
        rgba = _to_grey(image).convert("RGBA")
        rgba.putalpha(Image.fromarray(np.where(hidden, np.uint8(0), np.uint8(255))))
        return rgba
    return image.convert("RGBA")


def _is_deep(image: Image.Image) -> bool:
    return image.mode == "F" or image.mode.startswith("I")


def _to_grey(image: Image.Image) -> Image.Image:
    """Deep greyscale as L, scaled down where Pillow alone would clip it to white.

    Floats are taken as 0..1, or as 0..255 if any is above 1; 32-bit integers as 16-bit, or as 8-bit if none is above
    255. ValueError for integers of a wider range: nothing says where their white is.
    """
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        scale = 255.0 if values.max(initial=0.0) <= 1.0 else 1.0
        return Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8))
    deep = np.asarray(image, dtype=np.int64)
    low, high = int(deep.min()), int(deep.max())
    if low < 0 or high > 65535:
        raise ValueError(f"its values run from {low} to {high}; save it with 8 or 16 bits")
    if image.mode == "I" and high <= 255:
        return Image.fromarray(deep.astype(np.uint8))
    return Image.fromarray(((deep + 128) // 257).astype(np.uint8))


def _visible_mask(rgba: Image.Image) -> Image.Image:
    """L: the alpha channel if that is what the mask is drawn in, else the colours over black."""
    alpha = rgba.getchannel("A")
    pixels = np.asarray(rgba)
    visible = pixels[pixels[..., 3] > 0, :3]
    if bool((pixels[..., 3] < 255).any()) and bool((visible == visible[:1]).all()):
        return alpha
    black = Image.new("L", rgba.size, 0)
    black.paste(rgba.convert("RGB").convert("L"), mask=alpha)
    return black
