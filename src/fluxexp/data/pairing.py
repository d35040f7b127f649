"""Reads a sample from its files. Folders and tables share this code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL.Image import Resampling

from fluxexp.config.schema import ImagesDatasetConfig
from fluxexp.data.file_access import AllowedFolders
from fluxexp.data.image_reading import Picture, alpha_as_mask, read_image
from fluxexp.data.mask_reading import feathered, is_same_shape, read_mask, require_nonempty
from fluxexp.data.masks import draw_mask
from fluxexp.data.sources import File, RemoteFile
from fluxexp.errors import SampleError
from fluxexp.records import Sample

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleParts:
    """The files of one sample. `size` is the (height, width) that the dataset requests, if any.

    `image` is what `dataset.images_are` says. `control` and `reference` are further pictures."""

    key: str
    prompt: str
    prompt_2: str | None = None
    negative_prompt: str | None = None
    image: File
    mask: File | None
    truth: File | None = None
    control: File | None = None
    reference: File | None = None
    size: tuple[int, int] | None = None


def read_sample(parts: SampleParts, config: ImagesDatasetConfig, folders: AllowedFolders) -> Sample:
    """Read and decode a sample.

    The mask comes from the mask file, else from the alpha channel (with `alpha_mask`), else it is drawn (`mask`). With
    `mask=none`, or if the images are controls or references, the sample has no mask.

    Raises:
        SampleError: a file is missing, damaged, too large or outside of `folders`, or the sample has no mask, or its
            mask is empty.
    """
    for path in (parts.image, parts.mask if config.has_masks else None, parts.truth, parts.control, parts.reference):
        if isinstance(path, Path):
            folders.require(path)
        elif isinstance(path, RemoteFile):
            folders.require_url(path.url)
    picture = read_image(parts.image, config.max_image_megapixels)
    mask = _mask(parts, picture, config)
    opacity = None
    if mask is not None and config.mask_blur:
        opacity, mask = feathered(mask, config.mask_blur)
    limit = config.max_image_megapixels
    control = None if parts.control is None else _control(parts.control, picture.rgb.size, limit)
    reference = None if parts.reference is None else read_image(parts.reference, limit).rgb
    if config.images_are == "controls":
        control = picture.rgb
    if config.images_are == "references":
        reference = picture.rgb
    is_input = config.images_are == "inputs"
    return Sample(
        key=parts.key,
        prompt=parts.prompt,
        prompt_2=parts.prompt_2,
        negative_prompt=parts.negative_prompt,
        image=picture.rgb if is_input else None,
        control_image=control,
        references=() if reference is None else (reference,),
        mask=mask,
        truth=None if parts.truth is None else _truth(parts.truth, picture.rgb.size, limit),
        opacity=opacity,
        rgba=picture.rgba if is_input else None,
        icc_profile=None if config.images_are == "controls" else picture.icc_profile,
        size=parts.size,
        notes=("the image has more than 8 bits per channel and was reduced to 8",) if picture.is_reduced else (),
    )


def _mask(parts: SampleParts, picture: Picture, config: ImagesDatasetConfig) -> Image | None:
    if not config.has_masks:
        return None
    assert config.mask != "none"
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


def _control(path: File, size: tuple[int, int], max_megapixels: float) -> Image:
    """A control image at the size of its image."""
    control = read_image(path, max_megapixels).rgb
    if not is_same_shape(control.size, size):
        sizes = f"{control.width}x{control.height} pixels, but its image is {size[0]}x{size[1]}"
        raise SampleError(f"{path}: is {sizes}; make the control image at the aspect ratio of the image")
    return control if control.size == size else control.resize(size, Resampling.LANCZOS)


def _truth(path: File, size: tuple[int, int], max_megapixels: float) -> Image:
    truth = read_image(path, max_megapixels).rgb
    if truth.size != size:
        sizes = f"{truth.width}x{truth.height} pixels, but its image is {size[0]}x{size[1]}"
        raise SampleError(f"{path}: is {sizes}; use the same size for both")
    return truth
