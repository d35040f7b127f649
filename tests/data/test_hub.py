"""dataset=hub: datasets on disk that the tests make, read by the real library `datasets`."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fluxexp.config.schema import HubColumnsConfig, HubDatasetConfig
from fluxexp.data import Dataset, hub_revision, open_dataset
from fluxexp.data.hub_revision import pinned_dataset
from fluxexp.errors import ConfigError
from tests.data.making import (
    PICTURES,
    array,
    assert_checks_index,
    assert_threads_agree,
    config_error,
    keys_of,
    noise,
    sample_error,
    spot,
    write,
)
from tests.data.test_webdataset import png, sample, tar

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own for what the library makes."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def config(path: Path | str, columns: Mapping[str, str | None] | None = None, **keys: Any) -> HubDatasetConfig:
    defaults: dict[str, str | None] = dict.fromkeys(("mask", "truth", "key", "negative_prompt"))
    named = HubColumnsConfig(**(defaults | {"prompt": "text", "image": "image"} | dict(columns or {})))
    values: dict[str, Any] = {
        "name": None,
        "split": "train",
        "revision": None,
        "prompt": None,
        **PICTURES,
        "mask": "none",
    } | keys
    return HubDatasetConfig(kind="hub", path=str(path), placement="fit", columns=named, **values)


def hub(path: Path | str, columns: Mapping[str, str | None] | None = None, **keys: Any) -> Dataset:
    return open_dataset(config(path, columns, **keys))


def parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def test_parquet_with_image_bytes(tmp_path: Path) -> None:
    masks = [png(spot(24, 16, (0, 0, 8, 8 + number))) for number in range(3)]
    rows = [
        {"text": f"p{n}", "image": {"bytes": png(noise(24, 16, n)), "path": None}, "hole": masks[n], "id": f"k{n}"}
        for n in range(3)
    ]
    rows[2]["image"] = {"bytes": b"damaged", "path": None}
    dataset = hub(parquet(tmp_path / "t.parquet", rows), {"mask": "hole", "key": "id"}, mask=None)
    assert keys_of(dataset) == ["k0", "k1", "k2"]
    loaded = dataset.load(1)
    assert loaded.prompt == "p1"
    assert (array(loaded.image) == array(noise(24, 16, 1))).all()
    assert loaded.mask is not None
    assert loaded.mask.getbbox() == (0, 0, 8, 9)
    assert dataset.size(0) == (16, 24)
    assert "row 2, image: is not an image" in sample_error(dataset, 2)
    assert len({dataset.identity(n) for n in range(3)}) == len({dataset.inputs(n) for n in range(3)}) == 3
    assert dataset.known_inputs(0) is None
    assert_checks_index(dataset)


def test_images_of_the_library_in_parquet(tmp_path: Path) -> None:
    rows = {"text": ["a", "b"], "image": [noise(24, 16), noise(24, 16, 1)]}
    features = datasets.Features({"text": datasets.Value("string"), "image": datasets.Image()})
    (tmp_path / "d").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "d" / "train-0.parquet")
    dataset = hub(tmp_path / "d")
    assert keys_of(dataset) == ["row-0", "row-1"]
    assert (array(dataset.load(1).image) == array(noise(24, 16, 1))).all()
    assert_threads_agree(dataset)
    assert keys_of(hub(tmp_path / "d", limit=1)) == ["row-0"]


def test_an_imagefolder_with_metadata(tmp_path: Path) -> None:
    write(tmp_path / "d" / "train" / "a.png")
    write(tmp_path / "d" / "train" / "b.png", noise(24, 16, 1))
    lines = [{"file_name": f"{name}.png", "text": f"caption {name}"} for name in "ab"]
    (tmp_path / "d" / "train" / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    dataset = hub(tmp_path / "d")
    found = {dataset.load(n).prompt: array(dataset.load(n).image) for n in range(2)}
    assert (found["caption b"] == array(noise(24, 16, 1))).all()
    assert dataset.inputs(0) is not None


def test_tars_of_webdataset(tmp_path: Path) -> None:
    tar(tmp_path / "d" / "train-000.tar", sample("a", 0) | sample("b", 1))
    dataset = hub(tmp_path / "d", {"prompt": "txt", "image": "png", "key": "__key__"})
    assert keys_of(dataset) == ["a", "b"]
    assert dataset.load(1).prompt == "caption of b"
    assert (array(dataset.load(1).image) == array(noise(24, 16, 1))).all()


def test_prompts_without_images(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": "p", "no": "n"}, {"text": "", "no": None}]
    dataset = hub(parquet(tmp_path / "t.parquet", rows), {"image": None, "negative_prompt": "no"})
    loaded = dataset.load(0)
    assert (loaded.prompt, loaded.negative_prompt, loaded.image) == ("p", "n", None)
    assert dataset.sampling_columns.num_negative_prompts == 2
    assert "has no prompt" in sample_error(dataset, 1)
    assert dataset.notes == ["1 row without a prompt, which will fail"]
    assert config("x", {"image": None}).inputs == frozenset()


def test_files_outside_of_the_data_are_not_read(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret.png")
    (tmp_path / "d").mkdir()
    rows = [{"text": "p", "image": {"bytes": None, "path": str(secret)}}]
    parquet(tmp_path / "d" / "t.parquet", rows)
    dataset = hub(tmp_path / "d" / "t.parquet")
    assert "leads out of the dataset" in sample_error(dataset, 0)
    assert dataset.inputs(0) is None
    assert hub(tmp_path / "d" / "t.parquet", allowed_folders=[str(tmp_path)]).load(0).image is not None


def test_mistakes_are_config_errors(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "t.parquet", [{"text": "p", "image": "a.png", "id": 1}, {"text": "p", "image": "b", "id": 1}]
    )
    assert "not of pictures" in config_error(hub, path)
    assert "did you mean 'text'" in config_error(hub, path, columns={"prompt": "texts", "image": None})
    assert "has the value '1' in rows 0 and 1" in config_error(hub, path, columns={"image": None, "key": "id"})
    (tmp_path / "empty").mkdir()
    assert "dataset.path" in config_error(hub, tmp_path / "empty")
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(path.read_bytes()[:50])
    assert "cannot be read" in config_error(hub, damaged)
    (tmp_path / "d").mkdir()
    path.rename(tmp_path / "d" / "t.parquet")
    assert "dataset.split" in config_error(hub, tmp_path / "d", columns={"image": None}, split="test")
    assert "is not set" in config_error(hub, "")  # type: ignore[arg-type]


def test_a_revision_is_pinned_to_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789" * 4
    folder = tmp_path / "datasets--org--name"
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    pinned = pinned_dataset(config("org/name"))
    assert isinstance(pinned, HubDatasetConfig)
    assert pinned.revision == commit
    assert pinned_dataset(pinned) == pinned
    local = config(parquet(tmp_path / "t.parquet", [{"text": "p"}]))
    assert pinned_dataset(local) == local
    with pytest.raises(ConfigError, match=r"dataset\.revision"):
        pinned_dataset(config(tmp_path / "t.parquet", revision="main"))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_revision, "find_spec", lambda name: None)
    for use in (hub, lambda path: pinned_dataset(config(path))):
        assert "pip install 'fluxexp[hub]'" in config_error(use, "org/name")  # type: ignore[arg-type]


def test_the_picture_of_a_row_is_bytes(tmp_path: Path) -> None:
    stream = io.BytesIO()
    noise(24, 16).save(stream, "png")
    rows: list[dict[str, Any]] = [{"text": "p", "image": stream.getvalue()}, {"text": "q", "image": None}]
    dataset = hub(parquet(tmp_path / "t.parquet", rows))
    assert (array(dataset.load(0).image) == array(noise(24, 16))).all()
    assert "has no image in the column 'image'" in sample_error(dataset, 1)
