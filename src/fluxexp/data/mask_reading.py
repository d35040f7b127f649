"""Reads masks of all kinds: black and white, values 0 and 1, colors on black, or transparency."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from fluxexp.arrays import BoolArray
from fluxexp.data.colors import is_deep, to_rgb, to_rgba
from fluxexp.data.image_reading import DEFAULT_MAX_MEGAPIXELS, Picture, binary, open_upright, reading
from fluxexp.data.sources import File
from fluxexp.errors import SampleError

_COLORED = 64
"""A mask with a pixel whose channels differ by at least this much has colors. It is the darkest color of PASCAL VOC."""
_NOT_BLACK = 32
"""The brightest channel, from which on a pixel of a mask with colors is masked. JPEG noise on black is darker."""


def read_mask(
    path: File, picture: Picture, *, inverted: bool = False, max_megapixels: float = DEFAULT_MAX_MEGAPIXELS
) -> Image.Image:
    """Read the mask at `path` at the size of `picture`, mode L with values 0 and 255.

    - Grays: pixels with values from 128 on are masked. If no value is above 1, pixels with the value 1 are masked.
    - Colors, as in the palettes of PASCAL VOC or red strokes: all pixels that are not black are masked.
    - Transparency: if all visible pixels have one color, they are masked, as far as alpha is 128 or more. Otherwise,
      the rules above apply to the colors on black.

    A mask of another resolution is resized. A mask with the stored size of a `picture` that EXIF rotates comes from a
    program that ignores EXIF, and is rotated like the picture.

    Args:
        path: the file.
        picture: the image of the mask.
        inverted: whether the pixels that are masked by these rules are to be kept, and the others painted.
        max_megapixels: larger masks are not decoded.

    Raises:
        SampleError: the file does not exist, is not a regular file or not a complete image, has more pixels, or another
            aspect ratio than `picture`.
    """
    with reading(path):
        gray = _levels(open_upright(path, max_megapixels).image)
    size = picture.rgb.size
    if picture.transpose is not None and gray.size == picture.stored_size != size:
        gray = gray.transpose(picture.transpose)
    if not is_same_shape(gray.size, size):
        sizes = f"{gray.width}x{gray.height} pixels, but its image is {size[0]}x{size[1]}"
        raise SampleError(
            f"{path}: is {sizes}; make the mask at the size of the image, or at least at its aspect ratio"
        )
    if gray.size != size:
        gray = gray.resize(size, Image.Resampling.NEAREST)
    mask = binary(gray)
    return ImageOps.invert(mask) if inverted else mask


def require_nonempty(mask: Image.Image, source: object) -> Image.Image:
    """Return `mask`.

    Raises:
        SampleError: no pixel of the mask is set.
    """
    if mask.getbbox() is None:
        hint = (
            "mark the pixels to paint in white; grays below 128 do not count, and dataset.invert_mask=true inverts it"
        )
        raise SampleError(f"{source}: the mask is empty; {hint}")
    return mask


def feathered(mask: Image.Image, blur: float) -> tuple[Image.Image, Image.Image]:
    """Soften the border of `mask`.

    Args:
        mask: mode L with values 0 and 255.
        blur: standard deviation in pixels of a Gaussian filter.

    Returns:
        opacities (mode L), and the mask (0 and 255) of all pixels whose opacity is not 0.
    """
    opacity = mask.filter(ImageFilter.GaussianBlur(blur))
    return opacity, opacity.point(lambda value: 255 if value else 0)


def is_same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one size is the other one scaled, and rounded to whole pixels."""
    (width, height), (other_width, other_height) = size, other
    return (
        abs(width - height * other_width / other_height) <= 1 or abs(height - width * other_height / other_width) <= 1
    )


def _levels(image: Image.Image) -> Image.Image:
    """`image` in mode L, with values from 128 on where it is masked."""
    if image.has_transparency_data:
        return _visible(to_rgba(image))
    if is_deep(image) and (values := np.asarray(image)).max() == 1:
        return _white(values == 1)
    return _of_colors(to_rgb(image))


def _visible(rgba: Image.Image) -> Image.Image:
    """The alpha channel if pixels are transparent and the visible ones have one color; else the colors over black."""
    alpha = rgba.getchannel("A")
    pixels = np.asarray(rgba)
    visible = pixels[pixels[..., 3] > 0, :3]
    if bool((pixels[..., 3] < 255).any()) and bool((visible == visible[:1]).all()):
        return alpha
    black = Image.new("RGB", rgba.size, 0)
    black.paste(rgba.convert("RGB"), mask=alpha)
    return _of_colors(black)


def _of_colors(rgb: Image.Image) -> Image.Image:
    pixels = np.asarray(rgb)
    brightest = pixels.max(axis=2)
    if (brightest - pixels.min(axis=2)).max() >= _COLORED:
        return _white(brightest >= _NOT_BLACK)
    if brightest.max() == 1:
        return _white(brightest == 1)
    return rgb.convert("L")


def _white(masked: BoolArray) -> Image.Image:
    return Image.fromarray(np.where(masked, np.uint8(255), np.uint8(0)))
