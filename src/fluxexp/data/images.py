"""Reads pictures as people have them: any mode, any bit depth, turned by EXIF, with or without transparency."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fluxexp.errors import SampleError

EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_THRESHOLD = 128


def read_image(path: Path) -> tuple[Image.Image, Image.Image | None]:
    """The picture at `path` as RGB, over white where it is transparent, and its alpha channel (L) if it has one.

    Raises:
        SampleError: there is no such file, or it is not a whole picture.
    """
    image = _open(path)
    if not image.has_transparency_data:
        return _to_rgb(image), None
    rgba = image.convert("RGBA")
    alpha = rgba.getchannel("A")
    canvas = Image.new("RGB", rgba.size, "white")
    canvas.paste(rgba, mask=alpha)
    return canvas, alpha


def read_mask(path: Path, size: tuple[int, int]) -> Image.Image:
    """The mask at `path` as L with 0 and 255, brought to `size` (width, height): light pixels are painted.

    A mask drawn only in an alpha channel (one colour everywhere) is read from there.

    Raises:
        SampleError: there is no such file, or it is not a whole picture.
    """
    image = _open(path)
    grey = _to_rgb(image).convert("L") if not image.has_transparency_data else _visible_mask(image.convert("RGBA"))
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


def _open(path: Path) -> Image.Image:
    """The first frame at `path`, decoded and turned upright."""
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise SampleError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise SampleError(f"{path}: not a picture that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise SampleError(f"{path}: too large ({error})") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise SampleError(f"{path}: damaged ({error})") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB, 8 bits a channel; deeper greyscale is scaled down, where Pillow alone would clip it to white."""
    if image.mode.startswith("I"):
        deep = np.clip(np.asarray(image, dtype=np.int64), 0, 65535)
        image = Image.fromarray(((deep + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        scale = 255.0 if values.max(initial=0.0) <= 1.0 else 1.0
        image = Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8))
    return image.convert("RGB")


def _visible_mask(rgba: Image.Image) -> Image.Image:
    colours = rgba.convert("RGB").convert("L")
    low, high = colours.getextrema()
    if low == high:
        return rgba.getchannel("A")
    black = Image.new("L", rgba.size, 0)
    black.paste(colours, mask=rgba.getchannel("A"))
    return black
