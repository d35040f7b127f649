"""dataset=webdataset: tars that the tests make, on disk, behind a web server and in object storage."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fluxexp.config.dataset_places import expand_braces, folder_of
from fluxexp.config.schema import WebDatasetConfig, WebDatasetMembersConfig
from fluxexp.data import Dataset, open_dataset, remote_files, tar_index
from tests.data.http_server import serving
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
)


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    remote_files._facts.cache_clear()


def webdataset(path: Path | str, members: Mapping[str, Any] | None = None, **keys: Any) -> Dataset:
    defaults: dict[str, Any] = {"prompt": "txt", "image": None, "mask": "mask", "truth": None}
    named = WebDatasetMembersConfig(**(defaults | dict(members or {})))
    values: dict[str, Any] = {
        "keys": "members",
        "prompt": None,
        **PICTURES,
        "mask": "none",
    } | keys
    return open_dataset(WebDatasetConfig(kind="webdataset", path=str(path), placement="fit", members=named, **values))


def png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "png")
    return stream.getvalue()


def tar(path: Path, members: Mapping[str, bytes | str], mtime: int = 0, format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as file:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), mtime
            file.addfile(info, io.BytesIO(data))
    return path


def sample(key: str, seed: int = 0) -> dict[str, bytes | str]:
    return {f"{key}.png": png(noise(24, 16, seed)), f"{key}.txt": f"caption of {key}"}


def test_samples_are_read_by_index(tmp_path: Path) -> None:
    tar(tmp_path / "d" / "000.tar", sample("a", 0) | sample("x/b", 1))
    tar(
        tmp_path / "d" / "001.tar", {"__MACOSX/._c.png": "junk", ".hidden": "junk", "README": "no key"} | sample("c", 2)
    )
    dataset = webdataset(tmp_path / "d")
    assert keys_of(dataset) == ["a", "x/b", "c"]
    for index in (2, 0, 1):
        loaded = dataset.load(index)
        assert loaded.prompt == f"caption of {dataset.key(index)}"
        assert (array(loaded.image) == array(noise(24, 16, index))).all()
        assert dataset.size(index) == (16, 24)
    assert_checks_index(dataset)
    assert_threads_agree(dataset)
    assert dataset.notes == []


def test_all_roles_have_members(tmp_path: Path) -> None:
    members: dict[str, bytes | str] = {
        "a.jpg": png(noise(24, 16)),
        "a.mask.png": png(spot(24, 16, (0, 0, 8, 8))),
        "a.truth.png": png(noise(24, 16, 1)),
        "a.depth.png": png(noise(24, 16, 2)),
        "a.json": json.dumps({"caption": "a cat"}),
    }
    dataset = webdataset(
        tar(tmp_path / "t.tar", members), {"prompt": "json:caption", "truth": "truth"}, mask=None, controls="depth"
    )
    loaded = dataset.load(0)
    assert loaded.prompt == "a cat"
    assert loaded.mask is not None
    assert loaded.mask.getbbox() == (0, 0, 8, 8)
    assert (array(loaded.truth) == array(noise(24, 16, 1))).all()
    assert (array(loaded.control_image) == array(noise(24, 16, 2))).all()
    assert dataset.truth(0) is not None


def test_braces_expand(tmp_path: Path) -> None:
    assert expand_braces("s3://b/{08..11}-{a,b}.tar")[:3] == ["s3://b/08-a.tar", "s3://b/08-b.tar", "s3://b/09-a.tar"]
    assert expand_braces("{1..3}") == ["1", "2", "3"]
    assert folder_of("d/{000..010}.tar") == folder_of("d/000.tar") == folder_of("d/") == "d"
    for number in range(3):
        tar(tmp_path / f"{number:03}.tar", sample(f"s{number}"))
    assert keys_of(webdataset(tmp_path / "{000..002}.tar")) == ["s0", "s1", "s2"]
    assert keys_of(webdataset(tmp_path / "{000..002}.tar", limit=2)) == ["s0", "s1"]
    assert "003.tar does not exist" in config_error(webdataset, tmp_path / "{000..004}.tar")
    assert "more than 1000000 files" in config_error(webdataset, tmp_path / "{0..9999999}.tar")


def test_an_index_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar(tmp_path / "t.tar", sample("a") | sample("b"))
    before = webdataset(path)
    monkeypatch.setattr(tar_index, "_scan", lambda *_: pytest.fail("the headers are read again"))
    again = webdataset(path)
    assert keys_of(again) == keys_of(before)
    assert [again.inputs(i) for i in range(2)] == [before.inputs(i) for i in range(2)]
    assert again.load(1).prompt == "caption of b"
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for file in (tmp_path / "cache").rglob("*.npz"):
        file.write_bytes(file.read_bytes()[:100])
    assert keys_of(webdataset(path)) == ["a", "b"], "a damaged cache is not used"


def test_an_index_reads_only_headers(tmp_path: Path) -> None:
    path = tar(tmp_path / "big.tar", {f"{number}.png": os.urandom(1 << 20) for number in range(4)})
    with serving(tmp_path) as server:
        dataset = webdataset(f"{server.url}/big.tar", prompt="p")
        assert len(dataset) == 4
        assert server.requests["GET /big.tar"] < 12
        assert path.stat().st_size > 4 << 20
        assert "is not an image" in sample_error(dataset, 3)
        webdataset(f"{server.url}/big.tar", prompt="p")
        assert server.requests["GET /big.tar"] < 13, "the index is in the cache"


def test_tars_behind_urls_are_read(tmp_path: Path) -> None:
    for number in range(2):
        tar(tmp_path / "d" / f"{number:03}.tar", sample(f"s{number}", number))
    with serving(tmp_path) as server:
        dataset = webdataset(server.url + "/d/{000..001}.tar")
        assert (array(dataset.load(1).image) == array(noise(24, 16, 1))).all()
        assert dataset.size(0) is None
        assert "there is no such file" in config_error(webdataset, server.url + "/d/{000..002}.tar")  # type: ignore[arg-type]


def test_content_changes_with_size_or_time(tmp_path: Path) -> None:
    path = tar(tmp_path / "t.tar", sample("a"))
    before = webdataset(path)
    facts = before.identity(0), before.inputs(0)
    assert before.known_inputs(0) == before.inputs(0)
    tar(path, sample("a"))
    again = webdataset(path)
    assert (again.identity(0), again.inputs(0)) == facts, "the same members, in a new file"
    tar(path, sample("a"), mtime=5)
    later = webdataset(path)
    assert later.inputs(0) != facts[1]
    assert later.identity(0) != facts[0]
    assert "changed after it was opened" in sample_error(again, 0)


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names(tmp_path: Path, format: int) -> None:
    key = "/".join(["n" * 60] * 3)
    assert keys_of(webdataset(tar(tmp_path / "t.tar", sample(key), format=format))) == [key]


def test_a_truncated_tar_is_read_up_to_there(tmp_path: Path) -> None:
    path = tar(tmp_path / "t.tar", sample("a") | sample("b"))
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"b.png") + 700])
    dataset = webdataset(path, prompt="p")
    assert dataset.load(0).prompt == "caption of a"
    assert "1 tar damaged" in dataset.notes[0]
    assert "ends in the middle of a member" in sample_error(dataset, 1)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"no tar" * 500, "is not a tar"), (b"\x1f\x8b" + b"x" * 600, "decompress it"), (b"", "is not a tar")],
)
def test_files_that_are_no_tars(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "t.tar"
    path.write_bytes(content)
    assert words in config_error(webdataset, path)


def test_missing_members(tmp_path: Path) -> None:
    path = tar(tmp_path / "t.tar", sample("a") | {"b.txt": "no image"} | {"c.png": png(noise(24, 16))})
    dataset = webdataset(path)
    assert "has no image; it has txt" in sample_error(dataset, 1)
    assert dataset.inputs(1) is None
    assert "has no caption (txt)" in sample_error(dataset, 2)
    assert dataset.notes == ["1 sample without a caption, which will fail"]
    assert "has no members KEY.caption" in config_error(webdataset, path, members={"prompt": "caption"})
    assert "dataset.mask=box" in config_error(webdataset, path, mask=None)
    assert webdataset(path, mask="box").load(0).mask is not None


def test_keys_that_occur_twice(tmp_path: Path) -> None:
    tar(tmp_path / "d" / "0.tar", sample("a"))
    tar(tmp_path / "d" / "1.tar", sample("a"))
    message = config_error(webdataset, tmp_path / "d")
    assert "has the key 'a' twice: samples 1 and 2" in message
    assert "dataset.keys=shards" in message
    assert keys_of(webdataset(tmp_path / "d", keys="shards")) == ["0/a", "1/a"]


def test_links_out_of_the_folder_are_not_read(tmp_path: Path) -> None:
    tar(tmp_path / "other" / "0.tar", sample("a"))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "0.tar").symlink_to(tmp_path / "other" / "0.tar")
    assert f"dataset.allowed_folders=[{tmp_path / 'other'}]" in config_error(webdataset, tmp_path / "d")
    assert len(webdataset(tmp_path / "d", allowed_folders=[str(tmp_path / "other")])) == 1
