import json
from pathlib import Path

import pytest
from PIL import Image

from fluxexp.tracking import SampleRow
from fluxexp.tracking.image_strip import caption, image_strip
from fluxexp.tracking.sample_row import COLUMNS, decode_thumbnail, thumbnail


@pytest.mark.parametrize(("size", "small"), [((1024, 512), (256, 128)), ((300, 600), (128, 256)), ((64, 32), (64, 32))])
def test_the_longer_side_is_bounded(size: tuple[int, int], small: tuple[int, int]) -> None:
    assert decode_thumbnail(thumbnail(Image.new("RGB", size))).size == small


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "RGB"])
def test_any_mode_becomes_a_jpeg(mode: str) -> None:
    decoded = decode_thumbnail(thumbnail(Image.new(mode, (8, 8))))
    assert (decoded.format, decoded.mode) == ("JPEG", "RGB")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_file_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.new("RGB", (2000, 1000), (0, 128, 255)).save(path)
    decoded = decode_thumbnail(thumbnail(path.read_bytes))
    assert decoded.size == (256, 128)
    red, green, blue = decoded.resize((1, 1)).tobytes()
    assert (red, green, blue) == pytest.approx((0, 128, 255), abs=6)


def test_the_source_does_not_change() -> None:
    image = Image.new("RGB", (1000, 1000))
    thumbnail(image)
    assert image.size == (1000, 1000)


def test_a_row_has_every_column_and_all_digits_of_its_seed() -> None:
    row = SampleRow(
        key="a-1",
        sample="a",
        input=Image.new("RGB", (4, 4)),
        control=Image.new("RGB", (6, 4)),
        reference=Image.new("RGB", (8, 4)),
        mask=None,
        result=None,
        truth=None,
        prompt="x",
        seed=2**63 - 1,
    )
    message = json.loads(row.encode())
    assert message["type"] == "row"
    assert message["row"].keys() == set(COLUMNS)
    assert message["row"]["seed"] == "9223372036854775807"
    assert message["row"]["mask"] is None
    assert [decode_thumbnail(message["row"][name]).size for name in ("input", "control", "reference")] == [
        (4, 4),
        (6, 4),
        (8, 4),
    ]
    strip = image_strip(message["row"])
    assert strip is not None
    assert strip.width == 4 + 6 + 8 + 2 * 4
    assert caption(message["row"]) == "a: input | control | reference \u00b7 x"
