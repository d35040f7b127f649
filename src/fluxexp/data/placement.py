"""Brings a sample to the working size of a model, and pastes the result back without changing unmasked pixels.

A control image is placed like the image, and so is a reference of the image's size. A reference of another size is
placed as a whole.

The working size has sides that are multiples of 16 pixels. There are three placement modes: `fit` resizes the whole
image; `crop` takes the largest window with the working aspect ratio, at the position that contains most of the mask;
`pad` keeps the aspect ratio and repeats the edge pixels. An image that already has the working size is not changed.
With `mask_padding`, a window around the mask takes the place of the whole image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from fluxexp.arrays import ImageArray
from fluxexp.config.schema import SIZE_MULTIPLE, PlacementMode
from fluxexp.data.windows import Box, Size, covered, window_around, window_with_most
from fluxexp.records import Sample

if TYPE_CHECKING:
    from fluxexp.config import RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Maps an image to its working image: `window`, a box of the image, becomes `inner`, a box of the working image."""

    window: Box
    inner: Box
    covered: float
    """Fraction of the masked pixels that are in `window`. It is 1 unless `crop` cuts some off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A sample at its working size: image, control image and references (RGB), and mask (mode L with values 0 and 255).

    What the sample does not have is None.
    """

    height: int
    width: int
    image: Image.Image | None
    mask: Image.Image | None
    frame: Frame
    control_image: Image.Image | None = None
    references: tuple[Image.Image, ...] = ()


def place_for(sample: Sample, config: RunConfig) -> Placed:
    """Bring `sample` to the working size that the config of a run asks for."""
    sampling, dataset = config.sampling, config.dataset
    return place(
        sample,
        dataset.placement,
        sampling.height,
        sampling.width,
        sampling.max_pixels,
        config.model.resolution,
        mask_padding=dataset.mask_padding,
    )


def place(
    sample: Sample,
    policy: PlacementMode,
    height: int | None,
    width: int | None,
    max_pixels: int,
    resolution: int,
    *,
    mask_padding: int | None = None,
) -> Placed:
    """Bring `sample` to its working size.

    Args:
        sample: its image, mask and control image have the same size; it may lack any of them.
        policy: the placement mode.
        height: working height in pixels; None keeps the aspect ratio of the sample.
        width: the same for the width.
        max_pixels: largest number of pixels if neither height nor width is given.
        resolution: side of the square working size of a sample that has no size.
        mask_padding: only a window is placed: the bounding box of the mask with this many pixels around it, extended to
            the working aspect ratio. None, or a sample without a mask: the whole image.
    """
    working = working_size(_own_size(sample, resolution), height, width, max_pixels)
    main = main_picture(sample)
    if main is None:
        whole = (0, 0, *working)
        frame = Frame(window=whole, inner=whole, covered=1.0)
        return Placed(width=working[0], height=working[1], image=None, mask=None, frame=frame)
    if mask_padding is None or sample.mask is None:
        frame = _frame(policy, main.size, working, sample.mask)
    else:
        frame = _framed(policy, window_around(sample.mask, working, mask_padding), working)
    return Placed(
        width=working[0],
        height=working[1],
        image=None if sample.image is None else _place_colors(sample.image, frame, working),
        mask=None if sample.mask is None else _pad(_resize_mask(sample.mask, frame), frame.inner, working, edge=False),
        control_image=None if sample.control_image is None else _place_colors(sample.control_image, frame, working),
        references=tuple(
            _place_colors(each, frame if each.size == main.size else _frame(policy, each.size, working, None), working)
            for each in sample.references
        ),
        frame=frame,
    )


def main_picture(sample: Sample) -> Image.Image | None:
    """The picture of `sample` that has the size of its mask: its image, else its control image, else a reference."""
    return next((each for each in (sample.image, sample.control_image, *sample.references) if each is not None), None)


def restore(result: Image.Image, sample: Sample, frame: Frame, paste: bool) -> Image.Image:
    """Paste the masked region of `result` (RGB at the working size) into the sample's image.

    All unmasked pixels keep the values of the sample's image, also their transparency: the result is RGBA if the sample
    has transparent pixels. Returns `result` itself if `paste` is false, or if the sample has no image or no mask.
    """
    if not paste or sample.image is None or sample.mask is None:
        return result
    left, top, right, bottom = frame.window
    content = result.crop(frame.inner)
    if content.size != (right - left, bottom - top):
        content = content.resize((right - left, bottom - top), Image.Resampling.LANCZOS)
    picture = (sample.image if sample.rgba is None else sample.rgba).copy()
    opacity = sample.mask if sample.opacity is None else sample.opacity
    picture.paste(content.convert(picture.mode), (left, top), mask=opacity.crop(frame.window))
    return picture


def working_size(own: Size, height: int | None, width: int | None, max_pixels: int) -> Size:
    """The working size of a sample of size `own`, both (width, height).

    `height` and `width` are used as given. A missing side is rounded to a multiple of 16, close to the aspect ratio of
    `own`. If both are missing, the size is close to `own` and has at most `max_pixels`.
    """
    if height is not None and width is not None:
        return width, height
    own_width, own_height = own
    if height is not None:
        return _nearest(own_width * height / own_height), height
    if width is not None:
        return width, _nearest(own_height * width / own_width)
    if own_width * own_height <= max_pixels:
        nearest = _nearest(own_width), _nearest(own_height)
        if nearest[0] * nearest[1] <= max_pixels:
            return nearest
    scale = min(1.0, math.sqrt(max_pixels / (own_width * own_height)))
    size = _below(own_width * scale), _below(own_height * scale)
    # If one side was raised to 16, shorten the other one to stay within `max_pixels`.
    return min(size[0], _below(max_pixels / size[1])), min(size[1], _below(max_pixels / size[0]))


def expected_pixels(height: int | None, width: int | None, max_pixels: int, resolution: int) -> int:
    """Upper bound of the pixels of a working size; if only one side is given, the pixels for a square sample."""
    if height is None and width is None:
        return max(max_pixels, SIZE_MULTIPLE**2)
    working_width, working_height = working_size((resolution, resolution), height, width, max_pixels)
    return working_width * working_height


def _own_size(sample: Sample, resolution: int) -> Size:
    if sample.size is not None:
        height, width = sample.size
        return width, height
    main = main_picture(sample)
    return main.size if main is not None else (resolution, resolution)


def _nearest(length: float) -> int:
    return max(SIZE_MULTIPLE, math.floor(length / SIZE_MULTIPLE + 0.5) * SIZE_MULTIPLE)


def _below(length: float) -> int:
    return max(SIZE_MULTIPLE, math.floor(length / SIZE_MULTIPLE + 1e-9) * SIZE_MULTIPLE)


def _frame(policy: PlacementMode, own: Size, working: Size, mask: Image.Image | None) -> Frame:
    if policy == "crop":
        window = window_with_most(own, working, mask)
        return Frame(window=window, inner=(0, 0, *working), covered=1.0 if mask is None else covered(mask, window))
    return _framed(policy, (0, 0, *own), working)


def _framed(policy: PlacementMode, window: Box, working: Size) -> Frame:
    """The frame of the whole `window`, which contains the whole mask."""
    if policy == "pad":
        own = window[2] - window[0], window[3] - window[1]
        scale = min(working[0] / own[0], working[1] / own[1])
        size = tuple(max(1, min(w, round(o * scale))) for o, w in zip(own, working, strict=True))
        left, top = (working[0] - size[0]) // 2, (working[1] - size[1]) // 2
        return Frame(window=window, inner=(left, top, left + size[0], top + size[1]), covered=1.0)
    return Frame(window=window, inner=(0, 0, *working), covered=1.0)


def _inner_size(frame: Frame) -> Size:
    return frame.inner[2] - frame.inner[0], frame.inner[3] - frame.inner[1]


def _place_colors(image: Image.Image, frame: Frame, working: Size) -> Image.Image:
    content = image.crop(frame.window)
    size = _inner_size(frame)
    resized = content if content.size == size else content.resize(size, Image.Resampling.LANCZOS)
    return _pad(resized, frame.inner, working, edge=True)


def _resize_mask(mask: Image.Image, frame: Frame) -> Image.Image:
    """Resize the mask so that every working pixel that overlaps a masked pixel is masked.

    So every working pixel with content of the masked region is repainted. Image.resize does not guarantee this: its box
    filter selects pixels by their centers and can lose single pixels.
    """
    content = mask.crop(frame.window)
    size = _inner_size(frame)
    if content.size == size:
        return content
    pixels = _largest_under(_largest_under(np.asarray(content), size[1], 0), size[0], 1)
    return Image.fromarray(np.ascontiguousarray(pixels))


def _largest_under(pixels: ImageArray, length: int, axis: int) -> ImageArray:
    """Resize `pixels` to `length` along `axis`. A new pixel is the maximum of all old pixels that it overlaps."""
    own = pixels.shape[axis]
    # New pixel i covers the old pixels from floor(i * own / length) to ceil((i + 1) * own / length), exclusive.
    starts = np.arange(length) * own // length
    ends = -(-np.arange(1, length + 1) * own // length)
    # reduceat reduces from each index to the next one, so every second result lies between an end and a start, and is
    # dropped. The extra zero at the end makes the last `ends` a valid index.
    one_more = np.concatenate([pixels, np.zeros_like(pixels.take([0], axis))], axis)
    pairs = np.stack([starts, ends], 1).ravel()
    reduced: ImageArray = np.maximum.reduceat(one_more, pairs, axis)
    return reduced.take(np.arange(0, 2 * length, 2), axis)


def _pad(image: Image.Image, inner: Box, working: Size, *, edge: bool) -> Image.Image:
    """`image` at the box `inner` of a `working` size image. The border repeats the edge pixels, or is black."""
    if image.size == working:
        return image
    around = [(inner[1], working[1] - inner[3]), (inner[0], working[0] - inner[2])]
    pixels = np.asarray(image)
    if pixels.ndim == 3:
        around.append((0, 0))
    return Image.fromarray(np.pad(pixels, around, mode="edge" if edge else "constant"))
