"""Tables, pictures and tars in object storage: a real S3 server on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluxexp import object_clients
from fluxexp.data import remote_files
from fluxexp.passing_trouble import read_patiently
from tests.data.making import array, config_error, noise, sample_error, table
from tests.data.test_webdataset import png, sample, tar, webdataset
from tests.storage.s3_server import BUCKET, FaultyProxy, s3_server

obstore = pytest.importorskip("obstore")
pytest.importorskip("moto")


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FaultyProxy]:
    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(object_clients, "_retry_config", lambda: {"max_retries": 0})
    with s3_server() as port:
        made = FaultyProxy(port)
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
        for cache in (remote_files._facts, remote_files._of_scheme):
            cache.cache_clear()
        yield made
        made.close()
        remote_files._of_scheme.cache_clear()


def test_datasets_in_object_storage(proxy: FaultyProxy, tmp_path: Path) -> None:
    client = object_clients.make_client("s3", BUCKET)
    lines = [{"prompt": "p", "image": name} for name in ("a.png", "missing.png")]
    obstore.put(client, "d/t.jsonl", "\n".join(map(json.dumps, lines)).encode())
    obstore.put(client, "d/a.png", png(noise(24, 16)))
    obstore.put(client, "tars/000.tar", tar(tmp_path / "t.tar", sample("a", 1)).read_bytes())
    of_table = table(f"s3://{BUCKET}/d/t.jsonl", mask="none")  # type: ignore[arg-type]
    proxy.fail_times(2, "busy")
    loaded = read_patiently(lambda: of_table.load(0), sleep=lambda _: None)
    assert (array(loaded.image) == array(noise(24, 16))).all()
    assert "no such file" in sample_error(of_table, 1)
    of_tar = webdataset(f"s3://{BUCKET}/tars")
    assert (array(of_tar.load(0).image) == array(noise(24, 16, 1))).all()
    message = config_error(table, f"s3://{BUCKET}/none.csv")  # type: ignore[arg-type]
    assert "there is no such file" in message
