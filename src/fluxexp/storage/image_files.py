"""Encodes images as PNG, WebP or JPEG files whose metadata says how they were made."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fluxexp.errors import SampleError
from fluxexp.image_formats import RESULT_FORMATS
from fluxexp.transparency import over_white

ImageFormat = Literal["png", "webp", "jpeg"]
_METADATA_KEY = "fluxexp"
_EXIF_IMAGE_DESCRIPTION = 0x010E
_LARGEST_SIDE_PX: Mapping[ImageFormat, int] = {"webp": 16_383, "jpeg": 65_500}
"""Limits of the encoders (libwebp and libjpeg)."""


def encode_image(
    image: Image.Image,
    format: ImageFormat,
    quality: int,
    metadata: Mapping[str, Any],
    icc_profile: bytes | None = None,
    parameters: str | None = None,
) -> bytes:
    """Encode `image` as the bytes of a file.

    Args:
        image: RGB or RGBA. JPEG has no transparency: transparent pixels are white.
        format: of the file.
        quality: 1 to 100. WebP is lossless at 100. PNG is always lossless.
        metadata: stored as JSON: a PNG text chunk, or EXIF ImageDescription.
        icc_profile: describes the colors; None means sRGB.
        parameters: text that other programs read from the text chunk `parameters` of a PNG file. Other formats do not
            have it. None: no chunk.

    Raises:
        SampleError: the image is too large for the format.
    """
    require_encodable(image.size, format)
    text = json.dumps(metadata, ensure_ascii=True)
    buffer = io.BytesIO()
    if format == "png":
        info = PngInfo()
        info.add_text(_METADATA_KEY, text)
        if parameters is not None:
            info.add_text("parameters", parameters)  # Pillow writes it as iTXt (UTF-8) if it is not Latin-1
        # Level 1: for photographs, higher zlib levels take several times as long and save a few percent of size.
        image.save(buffer, "PNG", pnginfo=info, compress_level=1, icc_profile=icc_profile)
        return buffer.getvalue()
    exif = Image.Exif()
    exif[_EXIF_IMAGE_DESCRIPTION] = text
    if format == "webp":
        image.save(
            buffer, "WEBP", quality=quality, lossless=quality == 100, exact=True, exif=exif, icc_profile=icc_profile
        )
    else:
        opaque = over_white(image)
        opaque.save(buffer, "JPEG", quality=quality, subsampling=0, exif=exif, icc_profile=icc_profile)
    return buffer.getvalue()


def require_encodable(size: tuple[int, int], format: ImageFormat) -> None:
    """Check that a file of `format` can hold an image of `size` (width, height).

    Raises:
        SampleError: it cannot.
    """
    limit = _LARGEST_SIDE_PX.get(format)
    if limit is not None and max(size) > limit:
        what = f"the result has {size[0]}x{size[1]} pixels, and a {format} file has at most {limit} per side"
        raise SampleError(f"{what}; use output.format=png, or output.paste=false with a smaller sampling.max_pixels")


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata that `encode_image` stored in the file at `path`.

    Raises:
        ValueError: the file has no metadata of fluxexp.
    """
    with Image.open(path, formats=RESULT_FORMATS) as image:
        text = image.info.get(_METADATA_KEY) or image.getexif().get(_EXIF_IMAGE_DESCRIPTION)
    if text is None:
        raise ValueError(f"{path} has no fluxexp metadata")
    metadata: dict[str, Any] = json.loads(text)
    return metadata
