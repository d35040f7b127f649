"""Reads a sample from its files. Folders and tables share this code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fluxexp.config.schema import MaskChoice
from fluxexp.data.image_reading import alpha_as_mask, read_image, read_mask, require_nonempty
from fluxexp.data.masks import draw_mask
from fluxexp.errors import SampleError
from fluxexp.records import Sample

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleParts:
    """Paths of the files of one sample. `size` is the (height, width) that the dataset requests, if any."""

    key: str
    prompt: str
    image: Path
    mask: Path | None
    truth: Path | None = None
    size: tuple[int, int] | None = None


def read_sample(parts: SampleParts, *, alpha_mask: bool, mask_kind: MaskChoice | None) -> Sample:
    """Read and decode a sample.

    The mask comes from the mask file, else from the alpha channel (with `alpha_mask`), else it is drawn (`mask_kind`).
    With `mask_kind="none"` the sample has no mask.

    Raises:
        SampleError: a file is missing or damaged, or the sample has no mask, or its mask is empty.
    """
    picture = read_image(parts.image)
    image = picture.rgb
    transparent = alpha_as_mask(picture.alpha) if alpha_mask and picture.alpha is not None else None
    draw = "let fluxexp draw one (dataset.mask=box|center|strokes|outpaint)"
    mask: Image | None
    if mask_kind == "none":
        mask = None
    elif parts.mask is not None:
        mask = require_nonempty(read_mask(parts.mask, picture), parts.mask)
    elif transparent is not None and transparent.getbbox() is not None:
        mask = transparent
    elif mask_kind is not None:
        mask = draw_mask(mask_kind, image.size, parts.key)
    elif alpha_mask:
        raise SampleError(f"{parts.image}: has no mask and no transparent pixel; add a mask, or {draw}")
    else:
        raise SampleError(f"{parts.image}: has no mask; add one, or {draw}")
    truth = None
    if parts.truth is not None:
        truth = read_image(parts.truth).rgb
        if truth.size != image.size:
            sizes = f"{truth.width}x{truth.height} pixels, but its image is {image.width}x{image.height}"
            raise SampleError(f"{parts.truth}: is {sizes}; use the same size for both")
    return Sample(key=parts.key, prompt=parts.prompt, image=image, mask=mask, truth=truth, size=parts.size)
