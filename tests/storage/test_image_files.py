from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fluxexp.storage.image_files import encode_image, read_metadata

METADATA = {"prompt": 'ein „Stern“ ★ <b>"x"</b> 星', "seed": 2**63 - 1, "steps": 4, "guidance": 3.5}


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8))


@pytest.mark.parametrize("format", ["png", "webp", "jpeg"])
def test_metadata_is_read_back(tmp_path: Path, format: str) -> None:
    file = tmp_path / f"a.{format}"
    file.write_bytes(encode_image(picture(), format, 90, METADATA))  # type: ignore[arg-type]
    assert read_metadata(file) == METADATA
    with Image.open(file) as image:
        assert image.format == format.upper()
        assert image.size == (48, 32)


@pytest.mark.parametrize(("format", "quality"), [("png", 1), ("webp", 100)])
def test_lossless_formats_keep_all_pixels(tmp_path: Path, format: str, quality: int) -> None:
    file = tmp_path / "a"
    file.write_bytes(encode_image(picture(), format, quality, METADATA))  # type: ignore[arg-type]
    assert np.array_equal(np.asarray(Image.open(file).convert("RGB")), np.asarray(picture()))


@pytest.mark.parametrize("format", ["webp", "jpeg"])
def test_quality_makes_a_difference(format: str) -> None:
    sizes = [len(encode_image(picture(), format, quality, {})) for quality in (20, 90)]  # type: ignore[arg-type]
    assert sizes[0] < sizes[1]


def test_the_same_image_has_the_same_bytes() -> None:
    assert encode_image(picture(), "png", 90, METADATA) == encode_image(picture(), "png", 90, METADATA)


def test_other_images_have_no_metadata(tmp_path: Path) -> None:
    picture().save(tmp_path / "foreign.png")
    with pytest.raises(ValueError, match="no fluxexp metadata"):
        read_metadata(tmp_path / "foreign.png")
