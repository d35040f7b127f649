"""A row of the table of sample images, and its encoding as a line of JSON."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from fluxexp.image_formats import RESULT_FORMATS
from fluxexp.transparency import over_white

THUMBNAIL_PX = 256
JPEG_QUALITY = 85
IMAGE_COLUMNS = ("input", "control", "reference", "mask", "result", "truth")
COLUMNS = ("key", "sample", *IMAGE_COLUMNS, "prompt", "seed")
"""`key` is the key of the task and `sample` that of the sample. Tables of several runs can be joined by them. `seed` is
text, because a browser rounds numbers above 2**53."""

ImageSource = Image.Image | Callable[[], bytes]
"""An image, or a function that reads the content of its file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRow:
    """The images of one task; None if there is no such image."""

    key: str
    sample: str
    input: ImageSource | None
    control: ImageSource | None = None
    reference: ImageSource | None = None
    """The first one."""
    mask: ImageSource | None
    result: ImageSource | None
    truth: ImageSource | None
    prompt: str | None
    seed: int

    def encode(self) -> str:
        """Make the message for this row (format: `child.py`), with the images as thumbnails.

        Raises:
            OSError: an image file cannot be read.
        """
        images: dict[str, ImageSource | None] = {name: getattr(self, name) for name in IMAGE_COLUMNS}
        thumbnails = {name: None if image is None else thumbnail(image) for name, image in images.items()}
        row = {"key": self.key, "sample": self.sample, "prompt": self.prompt, "seed": str(self.seed), **thumbnails}
        return json.dumps({"type": "row", "row": row})


def thumbnail(source: ImageSource) -> str:
    """Encode a copy of `source` as JPEG in base64, with a longer side of at most `THUMBNAIL_PX` pixels."""
    if isinstance(source, Image.Image):
        return _shrink(source)
    with Image.open(io.BytesIO(source()), formats=RESULT_FORMATS) as image:
        return _shrink(image)


def decode_thumbnail(text: str) -> Image.Image:
    """Decode the output of `thumbnail`."""
    image = Image.open(io.BytesIO(base64.b64decode(text)), formats=RESULT_FORMATS)
    image.load()
    return image


def _shrink(image: Image.Image) -> str:
    image.draft("RGB", (THUMBNAIL_PX, THUMBNAIL_PX))
    small = over_white(image)
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
