"""Tables and pictures behind URLs: web servers, object storage, memory, data URLs."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import fsspec
import pytest

from fluxexp.data import remote_files
from fluxexp.data.remote_files import url_problem
from fluxexp.errors import SampleError
from fluxexp.passing_trouble import read_patiently
from tests.data.http_server import Server, serving
from tests.data.making import array, config_error, noise, sample_error, table, write


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, and no memory of versions."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    remote_files._facts.cache_clear()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    with serving(tmp_path / "served") as server:
        yield server


def rows(path: Path, *values: Mapping[str, object]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def test_pictures_behind_urls_are_read(tmp_path: Path, server: Server) -> None:
    write(server.folder / "a.png")
    file = rows(tmp_path / "t.jsonl", {"prompt": "p", "image": f"{server.url}/a.png"})
    dataset = table(file, mask="none", allowed_folders=[server.url])
    assert server.requests.total() == 0, "planning asks no server"
    assert dataset.known_inputs(0) is None
    assert dataset.size(0) is None
    assert server.requests.total() == 0
    assert (array(dataset.load(0).image) == array(noise(24, 16))).all()
    assert server.requests[f"GET {'/a.png'}"] == 1


@pytest.mark.parametrize("has_etags", [True, False])
def test_the_content_of_a_url_is_its_etag_or_its_bytes(tmp_path: Path, server: Server, has_etags: bool) -> None:
    server.has_etags = has_etags
    write(server.folder / "a.png")
    file = rows(tmp_path / "t.jsonl", {"prompt": "p", "image": f"{server.url}/a.png"})
    dataset = table(file, mask="none", allowed_folders=[server.url])
    before = dataset.inputs(0)
    assert before is not None
    assert ("GET /a.png" in server.requests) == (not has_etags)
    write(server.folder / "a.png", noise(24, 16, seed=1))
    remote_files._facts.cache_clear()
    assert dataset.inputs(0) not in (None, before)


def test_a_busy_server_is_asked_again(tmp_path: Path, server: Server) -> None:
    write(server.folder / "a.png")
    file = rows(tmp_path / "t.jsonl", {"prompt": "p", "image": f"{server.url}/a.png"})
    dataset = table(file, mask="none", allowed_folders=[server.url])
    server.num_busy = 3
    sample = read_patiently(lambda: dataset.load(0), sleep=lambda _: None)
    assert sample.image is not None
    server.num_busy = 4
    with pytest.raises(SampleError, match=r"503.*tried 4 times"):
        read_patiently(lambda: dataset.load(0), sleep=lambda _: None)


def test_a_missing_picture_fails_at_once(tmp_path: Path, server: Server) -> None:
    write(server.folder / "a.png")
    missing = f"{server.url}/b.png"
    file = rows(
        tmp_path / "t.jsonl", {"prompt": "p", "image": f"{server.url}/a.png"}, {"prompt": "q", "image": missing}
    )
    dataset = table(file, mask="none", allowed_folders=[server.url])
    assert sample_error(dataset, 1) == f"{missing}: no such file"
    assert dataset.inputs(1) is None


def test_urls_need_to_be_allowed(tmp_path: Path, server: Server) -> None:
    write(server.folder / "a.png")
    write(tmp_path / "b.png")
    url = f"{server.url}/a.png"
    file = rows(tmp_path / "t.jsonl", {"prompt": "p", "image": url})
    assert f"dataset.allowed_folders=[{server.url}]" in config_error(table, file, mask="none")
    rows(file, {"prompt": "p", "image": url}, {"prompt": "q", "image": "b.png"})
    dataset = table(file, mask="none")
    assert f"dataset.allowed_folders=[{server.url}]" in sample_error(dataset, 0)
    assert dataset.inputs(0) is None
    assert "1 row with files outside of the dataset" in dataset.notes[0]
    for allowed in ([f"{server.url}/other"], ["http://127.0.0.1"], [server.url[:-1]]):
        assert "leads out of the dataset" in sample_error(table(file, mask="none", allowed_folders=allowed), 0)
    assert table(file, mask="none", allowed_folders=["/"]).load(0).image is not None
    assert server.requests.total() < 4


def test_a_table_behind_a_url_names_files_beside_it(tmp_path: Path, server: Server) -> None:
    write(server.folder / "data" / "a.png")
    rows(
        server.folder / "data" / "t.jsonl",
        {"prompt": "p", "image": "a.png"},
        {"prompt": "q", "image": "../a.png"},
        {"prompt": "r", "image": str(write(tmp_path / "local.png"))},
    )
    dataset = table(f"{server.url}/data/t.jsonl", mask="none")  # type: ignore[arg-type]
    assert dataset.load(0).image is not None
    assert "'..'" in sample_error(dataset, 1)
    assert "leads out of the dataset" in sample_error(dataset, 2)
    table(f"{server.url}/data/t.jsonl", mask="none")  # type: ignore[arg-type]
    assert server.requests["GET /data/t.jsonl"] == 1, "the copy in the cache is used again"


def test_a_table_behind_a_url_can_be_missing(server: Server) -> None:
    message = config_error(table, f"{server.url}/t.jsonl", mask="none")  # type: ignore[arg-type]
    assert "there is no such file" in message
    assert "not a supported table" in config_error(table, f"{server.url}/t.doc", mask="none")  # type: ignore[arg-type]


def test_files_in_memory_and_data_urls(tmp_path: Path) -> None:
    stream = io.BytesIO()
    noise(24, 16).save(stream, "png")
    fsspec.filesystem("memory").pipe("/pictures/a.png", stream.getvalue())
    data = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    damaged = "data:image/png;base64,!!!"
    cells = ["memory://pictures/a.png", data, damaged]
    file = rows(tmp_path / "t.jsonl", *({"prompt": "p", "image": cell} for cell in cells))
    dataset = table(file, mask="none", allowed_folders=["memory://pictures"])
    for index in range(2):
        assert (array(dataset.load(index).image) == array(noise(24, 16))).all()
    assert dataset.known_inputs(1) == dataset.inputs(1) is not None
    assert "not valid base64" in sample_error(dataset, 2)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("gopher://a/b.png", "unknown scheme 'gopher'"),
        ("https://a/b::file:///etc/passwd", "chain"),
        ("s3://bucket/a/../b.png", "'..'"),
    ],
)
def test_urls_that_are_never_read(tmp_path: Path, url: str, words: str) -> None:
    file = rows(tmp_path / "t.jsonl", {"prompt": "p", "image": url})
    assert words in sample_error(table(file, mask="none", allowed_folders=["/"]), 0)


def test_a_file_url_is_a_local_path(tmp_path: Path) -> None:
    image = write(tmp_path / "inside" / "a b.png")
    file = rows(tmp_path / "inside" / "t.jsonl", {"prompt": "p", "image": image.as_uri()})
    assert table(file, mask="none").load(0).image is not None
    rows(file, {"prompt": "p", "image": "file:///etc/passwd"})
    assert "outside of its folder" in config_error(table, file, mask="none")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_files, "find_spec", lambda name: None)
    assert url_problem("s3://bucket/a.png") == ("needs obstore, which is not installed", "pip install 'fluxexp[s3]'")
    assert url_problem("https://a/b.png") == ("needs aiohttp, which is not installed", "pip install 'fluxexp[urls]'")
