"""Images as files: PNG, WebP or JPEG, with what made them in the file's own metadata."""

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
    """`image` (RGB) as a file's bytes. `metadata` is JSON: a PNG text chunk, else EXIF's ImageDescription.

    `quality` is 1 to 100; WebP at 100 is lossless, PNG always is.
    """
    text = json.dumps(metadata, ensure_ascii=True)
    buffer = io.BytesIO()
    if format == "png":
        info = PngInfo()
        info.add_text(_METADATA_KEY, text)
        # Level 1: the zlib levels above cost several times as long for a few per cent of size on photographs.
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
    """What `encode_image` put into the file at `path`.

    Raises:
        ValueError: the file holds no metadata of fluxexp.
    """
    with Image.open(path) as image:
        text = image.info.get(_METADATA_KEY) or image.getexif().get(_EXIF_IMAGE_DESCRIPTION)
    if text is None:
        raise ValueError(f"{path} holds no fluxexp metadata")
    metadata: dict[str, Any] = json.loads(text)
    return metadata
