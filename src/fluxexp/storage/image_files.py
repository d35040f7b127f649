"""Encodes images as PNG, WebP or JPEG files whose metadata says how they were made."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from PIL.PngImagePlugin import PngInfo

ImageFormat = Literal["png", "webp", "jpeg"]
_METADATA_KEY = "fluxexp"
_EXIF_IMAGE_DESCRIPTION = 0x010E


def encode_image(image: Image.Image, format: ImageFormat, quality: int, metadata: Mapping[str, Any]) -> bytes:
    """`image` (RGB) as the bytes of a file. `metadata` is stored as JSON: a PNG text chunk, or EXIF ImageDescription.

    `quality` is 1 to 100. WebP is lossless at 100. PNG is always lossless.
    """
    text = json.dumps(metadata, ensure_ascii=True)
    buffer = io.BytesIO()
    if format == "png":
        info = PngInfo()
        info.add_text(_METADATA_KEY, text)
        # Level 1: for photographs, higher zlib levels take several times as long and save a few percent of size.
        image.save(buffer, "PNG", pnginfo=info, compress_level=1)
        return buffer.getvalue()
    exif = Image.Exif()
    exif[_EXIF_IMAGE_DESCRIPTION] = text
    if format == "webp":
        image.save(buffer, "WEBP", quality=quality, lossless=quality == 100, exact=True, exif=exif)
    else:
        image.save(buffer, "JPEG", quality=quality, subsampling=0, exif=exif)
    return buffer.getvalue()


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata that `encode_image` stored in the file at `path`.

    Raises:
        ValueError: the file has no metadata of fluxexp.
    """
    with Image.open(path) as image:
        text = image.info.get(_METADATA_KEY) or image.getexif().get(_EXIF_IMAGE_DESCRIPTION)
    if text is None:
        raise ValueError(f"{path} has no fluxexp metadata")
    metadata: dict[str, Any] = json.loads(text)
    return metadata
