"""Reads a sample from its files. Folders and tables share this code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fluxexp.config.schema import ImagesDatasetConfig
from fluxexp.data.file_access import AllowedFolders
from fluxexp.data.image_reading import Picture, alpha_as_mask, read_image
from fluxexp.data.mask_reading import feathered, read_mask, require_nonempty
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
    prompt_2: str | None = None
    negative_prompt: str | None = None
    image: Path
    mask: Path | None
    truth: Path | None = None
    size: tuple[int, int] | None = None


def read_sample(parts: SampleParts, config: ImagesDatasetConfig, folders: AllowedFolders) -> Sample:
    """Read and decode a sample.

    The mask comes from the mask file, else from the alpha channel (with `alpha_mask`), else it is drawn (`mask`). With
    `mask=none` the sample has no mask.

    Raises:
        SampleError: a file is missing, damaged, too large or outside of `folders`, or the sample has no mask, or its
            mask is empty.
    """
    for path in (parts.image, None if config.mask == "none" else parts.mask, parts.truth):
        if path is not None:
            folders.require(path)
    picture = read_image(parts.image, config.max_image_megapixels)
    mask = _mask(parts, picture, config)
    opacity = None
    if mask is not None and config.mask_blur:
        opacity, mask = feathered(mask, config.mask_blur)
    return Sample(
        key=parts.key,
        prompt=parts.prompt,
        prompt_2=parts.prompt_2,
        negative_prompt=parts.negative_prompt,
        image=picture.rgb,
        mask=mask,
        truth=None if parts.truth is None else _truth(parts.truth, picture.rgb.size, config.max_image_megapixels),
        opacity=opacity,
        rgba=picture.rgba,
        icc_profile=picture.icc_profile,
        size=parts.size,
        notes=("the image has more than 8 bits per channel and was reduced to 8",) if picture.is_reduced else (),
    )


def _mask(parts: SampleParts, picture: Picture, config: ImagesDatasetConfig) -> Image | None:
    if config.mask == "none":
        return None
    if parts.mask is not None:
        limit = config.max_image_megapixels
        mask = read_mask(parts.mask, picture, inverted=config.invert_mask, max_megapixels=limit)
        return require_nonempty(mask, parts.mask)
    transparent = alpha_as_mask(picture.alpha) if config.alpha_mask and picture.alpha is not None else None
    if transparent is not None and transparent.getbbox() is not None:
        return transparent
    if config.mask is not None:
        return draw_mask(config.mask, picture.rgb.size, parts.key)
    draw = "let fluxexp draw one (dataset.mask=box|center|strokes|outpaint)"
    if config.alpha_mask:
        raise SampleError(f"{parts.image}: has no mask and no transparent pixel; add a mask, or {draw}")
    raise SampleError(f"{parts.image}: has no mask; add one, or {draw}")


def _truth(path: Path, size: tuple[int, int], max_megapixels: float) -> Image:
    truth = read_image(path, max_megapixels).rgb
    if truth.size != size:
        sizes = f"{truth.width}x{truth.height} pixels, but its image is {size[0]}x{size[1]}"
        raise SampleError(f"{path}: is {sizes}; use the same size for both")
    return truth
