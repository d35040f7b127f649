"""The size of a sample before its images are decoded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fluxexp.config import RunConfig
from fluxexp.data import Dataset, open_dataset

Compose = Callable[..., RunConfig]


@pytest.fixture
def opened(compose: Compose) -> Callable[..., Dataset]:
    return lambda *overrides: open_dataset(compose(*overrides).dataset)


def test_scenes_have_the_configured_size(opened: Callable[..., Dataset]) -> None:
    assert opened("dataset.height=64", "dataset.width=96").size(3) == (64, 96)


def test_folders_read_the_size_from_the_file_header(opened: Callable[..., Dataset], tmp_path: Path) -> None:
    Image.new("RGB", (48, 32)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"not an image")
    folder = opened("dataset=folder", f"dataset.path={tmp_path}", "dataset.mask=box", "dataset.prompt=x")
    assert [folder.size(index) for index in range(2)] == [(32, 48), None]


def test_tables_read_the_size_from_the_column_or_the_file_header(
    opened: Callable[..., Dataset], tmp_path: Path
) -> None:
    Image.new("RGB", (48, 32)).save(tmp_path / "a.png")
    rows = "x,a.png,\nx,a.png,64x16\nx,gone.png,\nx,a.png,odd\nx,,\n"
    (tmp_path / "t.csv").write_text(f"prompt,image,size\n{rows}")
    table = opened("dataset=table", f"dataset.path={tmp_path / 't.csv'}", "dataset.mask=box")
    assert [table.size(index) for index in range(5)] == [(32, 48), (16, 64), None, (32, 48), None]


def test_prompts_can_have_a_size(opened: Callable[..., Dataset], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("prompt,size\nx,\ny,32\n")
    prompts = opened("+experiment=text_to_image", "dataset=prompts", f"dataset.path={tmp_path / 't.csv'}")
    assert [prompts.size(index) for index in range(2)] == [None, (32, 32)]
