"""Control images and references: in folders, tables and drawn scenes, and at the working size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fluxexp.data import place
from fluxexp.errors import ConfigError, SampleError
from fluxexp.records import Sample
from tests.data.making import array, folder, noise, spot, table, write
from tests.data.test_shapes import shapes


def three_folders(root: Path) -> dict[str, str]:
    """Two images, and their control images and references of other sizes."""
    for name in ("a", "b"):
        write(root / "images" / f"{name}.png", noise(24, 16))
        write(root / "edges" / f"{name}.jpg", noise(48, 32))
        write(root / "looks" / f"{name.upper()}.png", noise(30, 50))
    return {"controls": str(root / "edges"), "references": str(root / "looks")}


def test_a_folder_has_control_images_and_references_by_name(tmp_path: Path) -> None:
    dataset = folder(tmp_path / "images", mask="none", **three_folders(tmp_path))
    assert len(dataset) == 2
    sample = dataset.load(1)
    assert sample.image is not None
    assert sample.control_image is not None
    assert sample.control_image.size == sample.image.size == (24, 16), "a control image gets the size of its image"
    assert [each.size for each in sample.references] == [(30, 50)], "a reference keeps its size"


@pytest.mark.parametrize("name", ["edges/b.jpg", "looks/B.png", "images/b.png"])
def test_a_changed_picture_outdates_the_results_of_its_sample(name: str, tmp_path: Path) -> None:
    dataset = folder(tmp_path / "images", mask="none", **three_folders(tmp_path))
    before = [dataset.inputs(0), dataset.inputs(1)]
    assert None not in before
    write(tmp_path / name, spot(24, 16, (1, 1, 5, 5)))
    assert [dataset.inputs(0), dataset.inputs(1)] != before
    assert dataset.inputs(0) == before[0]
    (tmp_path / name).unlink()
    assert dataset.inputs(1) is None


def test_a_missing_or_wrong_control_image_fails_only_its_sample(tmp_path: Path) -> None:
    keys = three_folders(tmp_path)
    (tmp_path / "edges" / "b.jpg").unlink()
    dataset = folder(tmp_path / "images", mask="none", **keys)
    assert "1 sample without a control image, which will fail: b.png" in dataset.notes
    dataset.load(0)
    with pytest.raises(SampleError, match=r"edges: has no control image for b\.png"):
        dataset.load(1)
    write(tmp_path / "edges" / "b.jpg", noise(48, 48))
    with pytest.raises(SampleError, match="make the control image at the aspect ratio of the image"):
        folder(tmp_path / "images", mask="none", **keys).load(1)


def test_a_folder_without_any_match_is_a_config_error(tmp_path: Path) -> None:
    keys = three_folders(tmp_path)
    with pytest.raises(ConfigError, match=r"dataset\.references.*no image in .* has a reference"):
        folder(tmp_path / "images", mask="none", **{**keys, "references": str(write(tmp_path / "x" / "z.png").parent)})


@pytest.mark.parametrize("role", ["controls", "references"])
def test_the_images_of_a_folder_can_be_controls_or_references(role: Any, tmp_path: Path) -> None:
    write(tmp_path / "a.png", noise(24, 16))
    write(tmp_path / "a_mask.png", spot(24, 16, (1, 1, 5, 5)))
    dataset = folder(tmp_path, images_are=role)
    assert dataset.key(0) == "a"
    sample = dataset.load(0)
    assert sample.image is None
    assert sample.mask is None, "only inputs have masks"
    assert (sample.control_image is not None) == (role == "controls")
    assert len(sample.references) == (role == "references")


def rows(path: Path, *values: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in values))
    return path


def test_a_table_names_the_columns(tmp_path: Path) -> None:
    for name in ("i", "c", "d", "r"):
        write(tmp_path / f"{name}.png", spot(24, 16, (1, 1, 5, 5)) if name == "d" else noise(24, 16))
    row = {"prompt": "p", "image": "i.png", "canny": "c.png", "depth": "d.png", "look": "r.png"}
    path = rows(tmp_path / "t.jsonl", row)
    dataset = table(path, mask="none", controls="canny", references="look")
    sample = dataset.load(0)
    assert sample.control_image is not None
    assert len(sample.references) == 1
    assert dataset.notes == ["1 column not used: depth"]
    depth = table(path, mask="none", controls="depth", references="look")
    assert depth.key(0) != dataset.key(0), "the content of the row is another"
    assert depth.inputs(0) != dataset.inputs(0)
    assert table(path, mask="none").key(0) == table(rows(tmp_path / "u.jsonl", row), mask="none").key(0)


@pytest.mark.parametrize(("role", "column"), [("controls", "control"), ("references", "reference")])
def test_the_rows_of_a_table_need_no_image_if_another_column_has_it(role: Any, column: str, tmp_path: Path) -> None:
    write(tmp_path / "c.png", noise(24, 16))
    path = rows(tmp_path / "t.jsonl", {"prompt": "p", column: "c.png"}, {"prompt": "q"})
    dataset = table(path, images_are=role)
    assert dataset.load(0).image is None
    assert dataset.size(0) == (16, 24)
    with pytest.raises(SampleError, match=f"has no {column} image"):
        dataset.load(1)
    with pytest.raises(ConfigError, match=f"has no column '{column}'"):
        table(rows(tmp_path / "u.jsonl", {"prompt": "p", "image": "c.png"}), images_are=role)


def test_a_table_cannot_use_a_column_twice(tmp_path: Path) -> None:
    path = rows(tmp_path / "t.jsonl", {"prompt": "p", "image": "i.png", "x": "y.png"})
    with pytest.raises(ConfigError, match=r"dataset\.controls='mask': is a column with another meaning"):
        table(path, controls="mask")
    with pytest.raises(ConfigError, match=r"is the column of dataset\.controls"):
        table(path, controls="x", references="x")


def test_several_references_of_a_row_are_counted_and_refused(tmp_path: Path) -> None:
    write(tmp_path / "i.png", noise(24, 16))
    path = rows(tmp_path / "t.jsonl", {"prompt": "p", "image": "i.png", "look": ["a.png", "b.png"]})
    with pytest.raises(SampleError, match="row 1: look has 2 paths, but a sample has one"):
        table(path, mask="none", references="look").load(0)


def test_a_file_outside_of_the_table_is_not_read(tmp_path: Path) -> None:
    write(tmp_path / "out.png")
    write(tmp_path / "in" / "i.png")
    path = rows(tmp_path / "in" / "t.jsonl", {"prompt": "p", "image": "i.png", "control": "../out.png"})
    with pytest.raises(ConfigError, match="files outside of its folder in all 1 rows"):
        table(path, mask="none", controls="control")


def test_drawn_scenes_have_outlines_and_references() -> None:
    plain, sample = shapes().load(3), shapes(further=True).load(3)
    assert plain.control_image is None
    assert not plain.references
    assert sample.control_image is not None
    lines = array(sample.control_image)
    assert lines.shape == (64, 64, 3)
    assert set(np.unique(lines)) == {0, 255}
    assert 0.01 < (lines > 0).mean() < 0.5
    assert np.array_equal(array(sample.references[0]), array(sample.truth))


@pytest.mark.parametrize("policy", ["fit", "crop", "pad"])
def test_a_control_image_is_placed_like_the_image(policy: Any) -> None:
    picture = noise(70, 50)
    mask = spot(70, 50, (50, 5, 65, 15))
    sample = Sample(key="k", prompt="p", image=picture, mask=mask, control_image=picture, references=(picture,))
    for padding in (None, 4):
        placed = place(sample, policy, 32, 32, 1 << 20, 128, mask_padding=padding)
        for each in (placed.control_image, *placed.references):
            assert np.array_equal(array(each), array(placed.image))


def test_a_reference_of_another_size_is_placed_as_a_whole() -> None:
    reference = Image.new("RGB", (40, 40), (200, 0, 0))
    sample = Sample(key="k", prompt="p", image=noise(70, 50), mask=spot(70, 50, (0, 0, 3, 3)), references=(reference,))
    placed = place(sample, "crop", 32, 48, 1 << 20, 128, mask_padding=2)
    assert placed.references[0].size == (48, 32)
    assert (array(placed.references[0]) == (200, 0, 0)).all()


@pytest.mark.parametrize("name", ["control_image", "references"])
def test_a_sample_without_an_image_has_the_size_of_its_other_picture(name: str) -> None:
    picture = noise(70, 50)
    pictures: dict[str, Any] = {name: (picture,) if name == "references" else picture}
    placed = place(Sample(key="k", prompt="p", **pictures), "fit", None, None, 1 << 20, 128)
    assert (placed.width, placed.height) == (64, 48)
    assert placed.image is None
