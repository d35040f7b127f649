"""A dataset never runs code, never stops a run, and reads no file outside of its folders."""

from __future__ import annotations

import os
import socket
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fluxexp.config.file_hashes import file_hash
from fluxexp.data.image_reading import picture_size, read_image, readable_formats
from fluxexp.data.mask_reading import read_mask
from fluxexp.errors import SampleError
from tests.data.making import config_error, folder, sample_error, table, write

GHOSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(marker) (w) file closefile\nshowpage\n"


def pair(path: Path) -> Path:
    """An image with a mask and a caption."""
    write(path)
    write(path.with_name(f"{path.stem}_mask.png"))
    path.with_suffix(".txt").write_text("a cat")
    return path


def huge_png(path: Path, width: int, height: int) -> Path:
    """A valid PNG with one gray level, of a few kilobytes."""
    compressor = zlib.compressobj(9)
    data = b"".join(compressor.compress(bytes(1 + width)) for _ in range(height)) + compressor.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def peak_bytes(read: Callable[[], object], match: str) -> int:
    """Memory that `read` needed until it refused the file."""
    tracemalloc.start()
    try:
        with pytest.raises(SampleError, match=match):
            read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_postscript_in_a_png_file_is_no_image(tmp_path: Path) -> None:
    """Pillow would start Ghostscript."""
    assert not {"EPS", "WMF"} & set(readable_formats())
    for name in ("a.png", "a.eps"):
        (tmp_path / name).write_bytes(GHOSTSCRIPT)
        with pytest.raises(SampleError, match="is not an image"):
            read_image(tmp_path / name)
        with pytest.raises(SampleError, match="is not an image"):
            read_mask(tmp_path / name, read_image(write(tmp_path / "b.png")))
        assert picture_size(tmp_path / name) is None


def test_no_reader_of_results_opens_postscript() -> None:
    """Every call of Image.open in the source restricts the formats."""
    source = Path(__file__).parents[2] / "src" / "fluxexp"
    calls = [
        line.strip()
        for file in source.rglob("*.py")
        for line in file.read_text().splitlines()
        if "Image.open(" in line and "formats=" not in line
    ]
    assert calls == []


def test_a_large_image_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    bomb = huge_png(tmp_path / "bomb.png", 12_000, 12_000)
    assert bomb.stat().st_size < 300_000
    words = r"has 1\d+(x12000)? pixels, more than dataset\.max_image_megapixels=100"
    assert peak_bytes(lambda: read_image(bomb), words) < 2_000_000
    assert peak_bytes(lambda: read_mask(bomb, read_image(write(tmp_path / "b.png"))), words) < 2_000_000
    assert read_image(huge_png(tmp_path / "ok.png", 400, 500), max_megapixels=0.2).rgb.size == (400, 500)
    with pytest.raises(SampleError, match=r"max_image_megapixels=0\.1"):
        read_image(tmp_path / "ok.png", max_megapixels=0.1)


def test_each_file_of_a_sample_has_the_limit(tmp_path: Path) -> None:
    for name in ("image", "mask", "truth"):
        root = tmp_path / name
        pair(root / "in" / "a.png")
        write(root / "truths" / "a.png")
        files = {"image": "in/a.png", "mask": "in/a_mask.png", "truth": "truths/a.png"}
        huge_png(root / files[name], 400, 400)
        dataset = folder(root / "in", truths=str(root / "truths"), max_image_megapixels=0.1)
        assert "pixels, more than dataset.max_image_megapixels=0.1" in sample_error(dataset, 0)


def test_pictures_inside_of_other_files_have_the_limit(tmp_path: Path) -> None:
    """An icon contains a PNG, whose size is not that of the icon's table."""
    png = huge_png(tmp_path / "x.png", 12_000, 20_000).read_bytes()
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(png), 22)
    (tmp_path / "a.ico").write_bytes(struct.pack("<HHH", 0, 1, 1) + entry + png)
    with pytest.raises(SampleError, match="max_image_megapixels"):
        read_image(tmp_path / "a.ico")


def test_metadata_is_no_bomb(tmp_path: Path) -> None:
    """A text chunk and a color profile that inflate to 256 MB."""
    small = write(tmp_path / "a.png").read_bytes()
    inflated = zlib.compress(bytes(1 << 28), 9)
    for name, head in ((b"zTXt", b"x\0\0"), (b"iCCP", b"x\0\0")):
        chunk = name + head + inflated
        bomb = (
            small[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + small[33:]
        )
        (tmp_path / "bomb.png").write_bytes(bomb)
        tracemalloc.start()
        with suppress(SampleError):
            read_image(tmp_path / "bomb.png")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 25


def special_file(path: Path, kind: str) -> None:
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        here = os.open(".", os.O_RDONLY)
        os.chdir(path.parent)  # the path of a socket is short
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
        os.fchdir(here)
        os.close(here)
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", ["FIFO", "socket", "device"])
@pytest.mark.parametrize("name", ["a.png", "a_mask.png", "a.txt"])
def test_a_file_that_is_not_regular_is_a_failed_sample(tmp_path: Path, kind: str, name: str) -> None:
    """Opening a FIFO would wait for ever."""
    pair(tmp_path / "a.png")
    pair(tmp_path / "b.png")
    (tmp_path / name).unlink()
    special_file(tmp_path / name, kind)
    dataset = folder(tmp_path, prompt=None, allowed_folders=["/"])
    assert f"is a {kind}" in sample_error(dataset, 0)
    dataset.inputs(0)
    dataset.identity(0)
    dataset.size(0)
    assert dataset.load(1).prompt == "a cat"


def test_a_table_that_is_not_a_regular_file_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.csv")
    assert "is not a file" in config_error(table, tmp_path / "t.csv")
    with pytest.raises(OSError, match="is not a regular file"):
        file_hash(tmp_path / "t.csv")


def test_links_out_of_a_folder_fail_and_are_counted(tmp_path: Path) -> None:
    outside = pair(tmp_path / "private" / "x.png")
    for name in ("a.png", "b.png"):
        pair(tmp_path / "in" / name)
    (tmp_path / "in" / "a.png").unlink()
    (tmp_path / "in" / "a.png").symlink_to(outside)
    (tmp_path / "in" / "b_mask.png").unlink()
    (tmp_path / "in" / "b_mask.png").symlink_to(outside)
    dataset = folder(tmp_path / "in")
    for index, name in enumerate(("a.png", "b_mask.png")):
        error = sample_error(dataset, index)
        assert f"{name}: leads out of the dataset, to {outside}" in error
        assert f"dataset.allowed_folders=[{outside.parent}]" in error
        assert dataset.inputs(index) is None
    assert dataset.size(0) is None
    assert any("1 link which" in text and "a.png" in text for text in dataset.notes)
    allowed = folder(tmp_path / "in", allowed_folders=[str(outside.parent)])
    assert allowed.load(0).image is not None
    assert allowed.inputs(0) is not None
    (tmp_path / "in" / "b.txt").unlink()
    (tmp_path / "in" / "b.txt").symlink_to(outside.with_suffix(".txt"))
    assert "b.txt: leads out of the dataset" in sample_error(folder(tmp_path / "in"), 1)


def test_a_folder_of_links_only_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    outside = tmp_path / "photos"
    for number in range(3):
        pair(outside / f"{number}.png")
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{number}.png").symlink_to(outside / f"{number}.png")
    error = config_error(folder, tmp_path / "in", mask="box")
    assert "contains only links to files outside of it (3)" in error
    assert f"set dataset.allowed_folders=[{outside}]" in error
    (tmp_path / "in" / "more").symlink_to(outside)
    error = config_error(folder, tmp_path / "in", mask="box")
    assert f"contains 1 links to folders outside of it, for example more -> {outside}" in error
    assert len(folder(tmp_path / "in", mask="box", allowed_folders=[str(outside)])) == 6


def test_rows_name_only_files_of_the_dataset(tmp_path: Path) -> None:
    outside = pair(tmp_path / "private" / "x.png")
    pair(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "link.png").symlink_to(outside)
    names: list[str] = ["a.png", str(outside), "../private/x.png", "link.png", str(tmp_path / "in" / "a.png")]
    (tmp_path / "in" / "t.csv").write_text("prompt,image\n" + "".join(f"p,{name}\n" for name in names))

    def opened(**changes: Any) -> Any:
        return table(tmp_path / "in" / "t.csv", mask="box", **changes)

    dataset = opened()
    assert any("2 rows with files outside of the dataset" in text for text in dataset.notes)
    for index in (1, 2, 3):
        assert f"dataset.allowed_folders=[{outside.parent}]" in sample_error(dataset, index)
        assert dataset.inputs(index) is None
    assert dataset.load(0).image is not None
    assert dataset.load(4).image is not None
    assert opened(allowed_folders=["/"]).load(1).image is not None
    (tmp_path / "in" / "t.csv").write_text(f"prompt,image\np,{outside}\n")
    error = config_error(table, tmp_path / "in" / "t.csv", mask="box")
    assert f"names files outside of its folder in all 1 rows, for example {outside}" in error
    assert f"dataset.allowed_folders=[{outside.parent}]" in error


def test_a_long_caption_is_a_failed_sample(tmp_path: Path) -> None:
    pair(tmp_path / "a.png")
    os.truncate(tmp_path / "a.txt", 1 << 34)
    assert "too long for a caption" in sample_error(folder(tmp_path, prompt=None), 0)
