"""Brings images of any mode, bit depth and color profile to 8 bits of RGB.

A profile of an RGB image describes its numbers. They stay as they are, and the profile stays with them. Profiles of
CMYK and grayscale images describe other numbers: such an image is converted to sRGB, and its profile is dropped.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms

_SPACE = slice(16, 20)
"""Bytes of the color space in the header of an ICC profile."""
_SPACES = {"CMYK": b"CMYK", "L": b"GRAY"}
"""Color spaces of profiles that are converted, by the mode of the image."""


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB with 8 bits per channel, without metadata. Transparency does not count."""
    if is_deep(image):
        image = _with_profile_of(image, to_gray(image))
    elif image.mode in ("LA", "La"):
        image = _with_profile_of(image, image.convert("L"))
    rgb = _by_profile(image) or image.convert("RGB")
    rgb.info = {}
    return rgb


def to_rgba(image: Image.Image) -> Image.Image:
    """RGBA with 8 bits per channel, without metadata, for an image with transparency."""
    if is_deep(image):
        hidden = np.asarray(image) == image.info["transparency"]
        alpha = Image.fromarray(np.where(hidden, np.uint8(0), np.uint8(255)))
    else:
        alpha = image.convert("RGBA").getchannel("A")
    rgba = to_rgb(image).convert("RGBA") if image.mode in ("L", "LA", "La") or is_deep(image) else image.convert("RGBA")
    rgba.putalpha(alpha)
    rgba.info = {}
    return rgba


def rgb_profile(image: Image.Image) -> bytes | None:
    """The ICC profile that belongs to the result of `to_rgb`; None if there is none."""
    profile = image.info.get("icc_profile")
    is_rgb = image.mode in ("RGB", "RGBA", "RGBX", "P", "PA")
    return profile if profile and is_rgb and profile[_SPACE] == b"RGB " else None


def is_deep(image: Image.Image) -> bool:
    """Whether the image is grayscale with more than 8 bits per pixel."""
    return image.mode == "F" or image.mode.startswith("I")


def to_gray(image: Image.Image) -> Image.Image:
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


def _by_profile(image: Image.Image) -> Image.Image | None:
    """`image` in sRGB by its ICC profile; None if it has no profile of its own mode, or a damaged one."""
    profile = image.info.get("icc_profile")
    if not profile or profile[_SPACE] != _SPACES.get(image.mode):
        return None
    try:
        return ImageCms.profileToProfile(image, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return None  # the colors are converted without the profile, as if it was missing


def _with_profile_of(image: Image.Image, gray: Image.Image) -> Image.Image:
    gray.info = {"icc_profile": image.info.get("icc_profile")}
    return gray
