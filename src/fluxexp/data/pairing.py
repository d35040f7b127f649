"""From the parts of a sample on disk to the sample: what folders and tables have in common."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fluxexp.config.schema import MaskChoice
from fluxexp.data.image_reading import alpha_as_mask, read_image, read_mask, require_something_to_paint
from fluxexp.data.masks import draw_mask
from fluxexp.errors import SampleError
from fluxexp.records import Sample

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleParts:
    """Where the parts of one sample lie. `size` is (height, width) to work at, if the dataset says so."""

    key: str
    prompt: str
    image: Path
    mask: Path | None
    truth: Path | None = None
    size: tuple[int, int] | None = None


def read_sample(parts: SampleParts, *, alpha_mask: bool, mask_kind: MaskChoice | None) -> Sample:
    """Read and decode a sample: its mask from a file, else from its alpha channel, else drawn; or no mask at all.

    Raises:
        SampleError: a file is missing or damaged, or there is no mask, or an empty one.
    """
    picture = read_image(parts.image)
    image = picture.rgb
    transparent = alpha_as_mask(picture.alpha) if alpha_mask and picture.alpha is not None else None
    mask: Image | None
    if mask_kind == "none":
        mask = None
    elif parts.mask is not None:
        mask = require_something_to_paint(read_mask(parts.mask, picture), parts.mask)
    elif transparent is not None and transparent.getbbox() is not None:
        mask = transparent
    elif mask_kind is not None:
        mask = draw_mask(mask_kind, image.size, parts.key)
    elif alpha_mask:
        raise SampleError(f"{parts.image}: no mask, and no transparent pixel to use as one")
    else:
        raise SampleError(f"{parts.image}: no mask; add one, or draw one with dataset.mask=box|center|strokes|outpaint")
    truth = None
    if parts.truth is not None:
        truth = read_image(parts.truth).rgb
        if truth.size != image.size:
            raise SampleError(
                f"{parts.truth}: is {truth.width}x{truth.height} pixels, and its image {image.width}x{image.height}"
            )
    return Sample(key=parts.key, prompt=parts.prompt, image=image, mask=mask, truth=truth, size=parts.size)
