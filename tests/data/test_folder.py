from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fluxexp.config.schema import FolderDatasetConfig
from fluxexp.data import open_dataset
from fluxexp.data.masks import draw_mask
from fluxexp.errors import ConfigError
from tests.data.making import (
    array,
    assert_checks_index,
    assert_threads_agree,
    config_error,
    content,
    folder,
    keys_of,
    noise,
    sample_error,
    spot,
    write,
)

CONFIG = FolderDatasetConfig(
    kind="folder",
    path="",
    masks=None,
    truths=None,
    prompt=None,
    alpha_mask=False,
    invert_mask=False,
    mask_blur=0.0,
    mask_padding=None,
    mask=None,
    limit=None,
    max_image_megapixels=100.0,
    allowed_folders=[],
    images_are="inputs",
    controls=None,
    references=None,
    placement="fit",
)
BOX = (4, 4, 12, 10)


def mask_at(path: Path, box: tuple[int, int, int, int] = BOX) -> Path:
    return write(path, spot(24, 16, box))


def pair(path: Path, suffix: str = "_mask.png") -> Path:
    """An image with a mask next to it."""
    mask_at(path.with_name(path.stem + suffix))
    return write(path)


def painted(dataset: Any, index: int = 0) -> object:
    return dataset.load(index).mask.getbbox()


@pytest.mark.parametrize("suffix", ["_mask.png", "-mask.png", ".mask.png", "_mask.PNG", "_mask.bmp"])
def test_masks_are_found_next_to_images(suffix: str, tmp_path: Path) -> None:
    pair(tmp_path / "cat.jpg", suffix)
    dataset = folder(tmp_path)
    assert keys_of(dataset) == ["cat"]
    assert painted(dataset) == BOX


def test_samples_are_sorted_by_path(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "deep/er/c.webp", "deep/a.TIFF", "Ünï cöde/été 1.png", "name with spaces.bmp"):
        write(tmp_path / name)
    (tmp_path / "notes.md").write_text("not an image")
    write(tmp_path / ".hidden.png")
    write(tmp_path / ".cache" / "d.png")
    dataset = folder(tmp_path, mask="center")
    expected = ["a", "b", "deep/a", "deep/er/c", "name with spaces", "Ünï cöde/été 1"]
    assert keys_of(dataset) == expected
    assert [dataset.load(index).key for index in range(len(dataset))] == expected
    assert keys_of(folder(tmp_path, mask="center", limit=2)) == expected[:2]


def test_captions_are_found_next_to_images(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        write(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text("  ein Käfer\n", encoding="utf-8")
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfa bee\r\n")
    (tmp_path / "c.txt").write_text(" \n")
    dataset = folder(tmp_path, mask="box", prompt="an insect")
    assert [dataset.load(index).prompt for index in range(4)] == ["ein Käfer", "a bee", "an insect", "an insect"]
    assert folder(tmp_path, mask="box", prompt="").load(3).prompt == ""


def test_a_missing_caption_fails_only_its_sample(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        write(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_bytes("Käfer".encode("latin-1"))
    (tmp_path / "b.txt").touch()
    (tmp_path / "d.txt").write_text("a bee")
    dataset = folder(tmp_path, mask="box", prompt=None)
    assert f"{tmp_path / 'a.txt'}: cannot be read" in sample_error(dataset, 0)
    assert f"{tmp_path / 'b.txt'}: does not exist or is empty" in sample_error(dataset, 1)
    assert "set dataset.prompt" in sample_error(dataset, 2)
    assert dataset.load(3).prompt == "a bee"


def test_images_with_the_same_stem_have_keys_with_extension(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "b.png", "x.png", "x.png.jpg", "v1.0.png"):
        write(tmp_path / name)
    (tmp_path / "a.txt").write_text("shared")
    (tmp_path / "v1.0.txt").write_text("dotted")
    dataset = folder(tmp_path, mask="box")
    assert keys_of(dataset) == ["a.jpg", "a.png", "b", "v1.0", "x", "x.png.jpg"]
    assert [dataset.load(index).prompt for index in range(6)] == ["shared", "shared", "p", "dotted", "p", "p"]


def test_keys_are_unique_if_a_stem_equals_another_file_name(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.png.jpg"):
        write(tmp_path / name)
    assert len(set(keys_of(folder(tmp_path, mask="box")))) == 3


def test_images_with_the_same_stem_have_masks_by_extension(tmp_path: Path) -> None:
    for extension, box in (("png", (0, 0, 2, 2)), ("bmp", (2, 2, 4, 4))):
        write(tmp_path / "in" / f"a.{extension}")
        mask_at(tmp_path / "masks" / f"a.{extension}", box)
    dataset = folder(tmp_path / "in", masks=str(tmp_path / "masks"))
    assert keys_of(dataset) == ["a.bmp", "a.png"]
    assert [painted(dataset, index) for index in range(2)] == [(2, 2, 4, 4), (0, 0, 2, 2)]


def test_a_file_named_like_a_mask_is_an_image_if_it_can_be_one(tmp_path: Path) -> None:
    pair(tmp_path / "cat.png")
    write(tmp_path / "gas_mask.png")
    dataset = folder(tmp_path)
    assert keys_of(dataset) == ["cat"], "a sample without a mask would fail"
    assert dataset.notes == ["1 mask without a picture of this name: gas_mask.png"]
    assert keys_of(folder(tmp_path, mask="box")) == ["cat", "gas_mask"]
    mask_at(tmp_path / "gas_mask_mask.png")
    dataset = folder(tmp_path)
    assert keys_of(dataset) == ["cat", "gas_mask"]
    assert painted(dataset) == BOX


@pytest.mark.parametrize("name", ["deep/cat.png", "deep/cat.bmp", "deep/cat_mask.png"])
def test_masks_can_be_in_a_parallel_folder(name: str, tmp_path: Path) -> None:
    write(tmp_path / "pictures" / "deep" / "cat.jpg")
    mask_at(tmp_path / "masks" / name)
    dataset = folder(tmp_path / "pictures", masks=str(tmp_path / "masks"))
    assert keys_of(dataset) == ["deep/cat"]
    assert painted(dataset) == BOX


def test_folders_of_masks_and_ground_truths_inside_contain_no_samples(tmp_path: Path) -> None:
    write(tmp_path / "cat.jpg")
    mask_at(tmp_path / "masks" / "cat.png")
    write(tmp_path / "truths" / "cat.png", noise(24, 16, seed=5))
    dataset = folder(tmp_path, masks=str(tmp_path / "masks"), truths=str(tmp_path / "truths"))
    assert keys_of(dataset) == ["cat"]
    sample = dataset.load(0)
    assert sample.mask is not None
    assert sample.mask.getbbox() == BOX
    assert (array(sample.truth) == array(noise(24, 16, seed=5))).all()


def test_masks_can_be_in_the_folder_itself(tmp_path: Path) -> None:
    pair(tmp_path / "cat.jpg")
    dataset = folder(tmp_path, masks=str(tmp_path))
    assert keys_of(dataset) == ["cat"]


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "in" / "cat.png")
    mask_at(tmp_path / "masks" / "cat.png")
    write(tmp_path / "truths" / "cat.png")
    dataset = folder(Path("~/in"), masks="~/masks", truths="~/truths")
    assert painted(dataset) == BOX
    assert "is not a folder" in config_error(folder, Path("~nobody-of-this-name/in"))


def test_a_missing_or_wrong_ground_truth_fails_only_its_sample(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path / "in" / f"{name}.png")
    write(tmp_path / "truths" / "a.png")
    write(tmp_path / "truths" / "b.png", noise(25, 16))
    dataset = folder(tmp_path / "in", truths=str(tmp_path / "truths"), mask="box")
    assert dataset.load(0).truth is not None
    assert f"{tmp_path / 'truths' / 'b.png'}: is 25x16 pixels, but its image is 24x16" in sample_error(dataset, 1)
    assert f"{tmp_path / 'truths'}: has no ground truth for c.png" in sample_error(dataset, 2)


@pytest.mark.parametrize("kind", ["box", "center", "strokes", "outpaint"])
def test_a_missing_mask_is_drawn_from_the_key(kind: Any, tmp_path: Path) -> None:
    pair(tmp_path / "cat.png")
    write(tmp_path / "dog.png")
    dataset = folder(tmp_path, mask=kind)
    assert painted(dataset) == BOX
    assert (array(dataset.load(1).mask) == array(draw_mask(kind, (24, 16), "dog"))).all()


def test_alpha_is_a_mask_on_request(tmp_path: Path) -> None:
    masked_scene = noise(24, 16)
    masked_scene.putalpha(Image.eval(spot(24, 16, BOX), lambda value: 255 - value))
    write(tmp_path / "a.png", masked_scene)
    write(tmp_path / "b.png", noise(24, 16).convert("RGBA"))
    write(tmp_path / "c.png", masked_scene)
    mask_at(tmp_path / "c_mask.png", (0, 0, 3, 3))
    dataset = folder(tmp_path, alpha_mask=True)
    assert painted(dataset, 0) == BOX
    assert "no transparent pixel" in sample_error(dataset, 1)
    assert painted(dataset, 2) == (0, 0, 3, 3), "a mask file takes precedence over alpha"
    drawn = folder(tmp_path, alpha_mask=True, mask="center")
    assert painted(drawn, 0) == BOX
    assert painted(drawn, 1) == (6, 4, 18, 12)
    assert painted(folder(tmp_path, mask="center"), 0) == (6, 4, 18, 12), "alpha masks are off by default"


def test_masks_are_resized_to_the_image(tmp_path: Path) -> None:
    write(tmp_path / "cat.png", noise(48, 32))
    mask_at(tmp_path / "cat_mask.png")
    assert painted(folder(tmp_path)) == tuple(2 * edge for edge in BOX)


def test_a_bad_sample_does_not_affect_others(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        pair(tmp_path / f"{name}.png")
    (tmp_path / "a.png").write_text("not an image")
    (tmp_path / "b_mask.png").write_bytes(b"\x89PNG")
    mask_at(tmp_path / "c_mask.png", (0, 0, 0, 0))
    dataset = folder(tmp_path)
    assert "a.png: is not an image" in sample_error(dataset, 0)
    assert "b_mask.png: " in sample_error(dataset, 1)
    assert "c_mask.png: the mask is empty" in sample_error(dataset, 2)
    assert painted(dataset, 3) == BOX


def test_opening_reads_no_image(tmp_path: Path) -> None:
    for name in ("a.png", "a_mask.png", "b.jpg"):
        (tmp_path / name).symlink_to(tmp_path / "nowhere" / name)
    dataset = folder(tmp_path)
    assert keys_of(dataset) == ["a", "b"]
    assert f"{tmp_path / 'a.png'}: no such file" in sample_error(dataset, 0)


def test_symbolic_links_are_followed_without_loops(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "b.png")
    write(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "circle").symlink_to(tmp_path / "in")
    assert keys_of(folder(tmp_path / "in", mask="box", allowed_folders=[str(tmp_path)])) == ["a", "linked/b"]


def test_a_file_name_that_is_not_utf8_can_be_written_to_a_manifest(tmp_path: Path) -> None:
    name = os.fsdecode(b"k\xe4fer.png")
    try:
        write(tmp_path / "x.png").rename(tmp_path / name)
    except (OSError, UnicodeError):
        pytest.skip("the file system takes UTF-8 only")
    sample = folder(tmp_path, mask="box").load(0)
    assert sample.key == r"k\udce4fer"
    (tmp_path / name).write_text("not an image")
    assert r"k\udce4fer.png: is not an image" in sample_error(folder(tmp_path, mask="box"), 0)


def test_config_errors_contain_key_value_and_hint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.path: is not set\n +set dataset\.path=DIR"):
        open_dataset(replace(CONFIG, path=""))
    message = config_error(folder, tmp_path / "none")
    assert f"dataset.path='{tmp_path / 'none'}': is not a folder" in message
    assert "set dataset.path=DIR" in message
    message = config_error(folder, tmp_path)
    assert f"dataset.path='{tmp_path}': contains no images" in message
    assert ".jpg" in message
    write(tmp_path / "in" / "cat.png")
    assert f"dataset.masks='{tmp_path / 'no'}': is not a folder" in config_error(
        folder, tmp_path / "in", masks=str(tmp_path / "no")
    )
    assert "dataset.truths: is not set" in config_error(folder, tmp_path / "in", truths="", mask="box")
    message = config_error(folder, tmp_path / "in")
    assert "dataset.masks: no image in" in message
    assert "dataset.mask=box|center|strokes|outpaint" in message


def test_folders_without_any_match_are_an_error_even_if_masks_are_drawn(tmp_path: Path) -> None:
    write(tmp_path / "in" / "cat.png")
    write(tmp_path / "other" / "dog.png")
    other = str(tmp_path / "other")
    message = config_error(folder, tmp_path / "in", masks=other, truths=other, mask="box")
    assert f"dataset.masks='{other}': no image in" in message
    assert f"dataset.truths='{other}': no image in" in message


def test_loading_is_thread_safe_and_checks_the_index(tmp_path: Path) -> None:
    for index in range(8):
        pair(tmp_path / f"{index}.{['png', 'jpg', 'webp', 'gif'][index % 4]}")
    assert_threads_agree(folder(tmp_path))
    assert_checks_index(folder(tmp_path))
    assert content(folder(tmp_path).load(3)) == content(folder(tmp_path).load(3))


def test_unwanted_masks_are_not_read(tmp_path: Path) -> None:
    pair(tmp_path / "cat.jpg")
    write(tmp_path / "dog.png")
    dataset = folder(tmp_path, mask="none", prompt="a pet")
    assert keys_of(dataset) == ["cat", "dog"], "the mask is not a sample"
    assert [dataset.load(index).mask for index in range(2)] == [None, None]
    assert dataset.load(1).image is not None
