"""Exports, opened with the libraries that users open them with."""

from __future__ import annotations

import base64
import gc
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from fluxexp.address import Address
from fluxexp.errors import StorageError
from fluxexp.export import __main__ as command
from fluxexp.export import parquet_export, webdataset_export
from fluxexp.export.target_directory import target_directory
from fluxexp.storage.run_directory import RunDirectory
from fluxexp.storage.scores import ScoreLine
from tests.storage.test_manifest import record


def image(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def make_run(path: Path, keys: Sequence[str], *, is_sharded: bool = False) -> Path:
    directory = RunDirectory(Address.of(path))
    store = directory.store
    store.put("config.yaml", b"name: fill\nmodel: {name: fake}\nscheduler: {name: flow_match_euler}\n")
    store.put("overrides.yaml", b"[model=fake]\n")
    manifest = directory.writer.manifest()
    shards = store.shard_writer(1 << 20)
    for number, key in enumerate(keys):
        made = record(
            key=key, file=f"images/{key}.png", sample_key=f"sample {key}", prompt=f"prompt {key}", seed=number
        )
        if is_sharded:
            shards.append(made, image(number))
        else:
            store.put(f"images/{key}.png", image(number))
            manifest.append(made)
    shards.flush()
    manifest.append(record(key="bad", sample_key="sample bad", status="failed", file=None, error="no such file"))
    scores = directory.writer.scores()
    scores.append(ScoreLine(keys[0], {"psnr": 20.5, "ssim": None}))
    return path


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [make_run(tmp_path / "one", ["a", "b"]), make_run(tmp_path / "two", ["c"], is_sharded=True)]


def export(*arguments: str | Path) -> None:
    """Run the command in this process. SystemExit if it fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["export", *map(str, arguments)])
        command.main()


def test_parquet_has_images_prompts_settings_and_scores(runs: list[Path], tmp_path: Path) -> None:
    export(*runs, "--to", "parquet", "--output", tmp_path / "out")
    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert [row["key"] for row in rows] == ["a", "b", "c"]
    assert [row["image"]["bytes"] for row in rows] == [image(0), image(1), image(0)]
    assert [(row["run"], row["prompt"], row["seed"]) for row in rows][1:] == [
        ("one", "prompt b", 1),
        ("two", "prompt c", 0),
    ]
    assert [row["score_psnr"] for row in rows] == [20.5, None, 20.5]
    assert (rows[0]["model"], rows[0]["scheduler"], rows[0]["overrides"]) == ("fake", "flow_match_euler", "model=fake")


def test_parts_are_left_out(runs: list[Path], tmp_path: Path) -> None:
    export(runs[0], "--to", "parquet", "--output", tmp_path / "out", "--with", "prompts")
    names = pq.read_schema(tmp_path / "out" / "part-00000.parquet").names
    assert names == ["key", "run", "sample_key", "image_index", "prompt", "prompt_2", "negative_prompt"]


def test_large_parquet_exports_have_several_files_and_row_groups(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_export, "_GROUP_ROWS", 1)
    monkeypatch.setattr(parquet_export, "_FILE_BYTES", 900)
    export(*runs, "--to", "parquet", "--output", tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 2
    assert pq.ParquetFile(tmp_path / "out" / "part-00000.parquet").num_row_groups == 2
    assert pq.read_table(tmp_path / "out").num_rows == 3


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_opens_the_tars(runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset_export, "_TAR_BYTES", 4000)
    export(*runs, "--to", "webdataset", "--output", tmp_path / "out")
    tars = sorted(map(str, (tmp_path / "out").iterdir()))
    assert len(tars) == 2
    found = list(webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8"))
    assert [(each["__key__"], each["txt"], each["json"]["sample_key"]) for each in found] == [
        (key, f"prompt {key}", f"sample {key}") for key in "abc"
    ]
    assert found[1]["png"].shape == (6, 8, 3)
    assert found[1]["png"][0, 0].tolist() == [1, 0, 0]
    gc.collect()  # webdataset leaves its files open


def test_datasets_opens_the_directory(runs: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the library of Hugging Face is not installed: pip install datasets")
    export(*runs, "--to", "hf", "--output", tmp_path / "out")
    script = (
        "import datasets, json, sys\n"
        "data = datasets.load_dataset(sys.argv[1], cache_dir=sys.argv[2])['train']\n"
        "print(json.dumps([data[0]['prompt'], data[2]['score_psnr'], data[1]['image'].getpixel((0, 0)), len(data),"
        " type(data.features['image']).__name__]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "out"), str(tmp_path / "cache")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["prompt a", 20.5, [1, 0, 0], 3, "Image"]


@pytest.mark.parametrize("is_inline", [False, True])
def test_an_openai_batch_has_a_line_for_each_task(runs: list[Path], tmp_path: Path, is_inline: bool) -> None:
    export(*runs, "--to", "openai-batch", "--output", tmp_path / "out", *(["--b64"] if is_inline else []))
    results, errors = (_lines(tmp_path / "out" / f"{name}.jsonl") for name in ("results", "errors"))
    assert [line["custom_id"] for line in results] == ["sample a", "sample b", "sample c"]
    assert {line["response"]["status_code"] for line in results} == {200}
    data = results[1]["response"]["body"]["data"][0]
    content = base64.b64decode(data["b64_json"]) if is_inline else (tmp_path / "out" / data["file"]).read_bytes()
    assert np.asarray(Image.open(io.BytesIO(content)))[0, 0].tolist() == [1, 0, 0]
    assert data["revised_prompt"] == "prompt b"
    assert [line["response"]["body"]["error"]["message"] for line in errors] == ["no such file"] * 2
    assert [(line["custom_id"], line["response"]["status_code"]) for line in errors] == [("sample bad", 500)] * 2


def test_a_sweep_exports_its_points(runs: list[Path], tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    points = [{"directory": run.name, "status": "complete"} for run in runs]
    (sweep / "sweep.json").write_text(json.dumps({"status": "complete", "points": points}))
    export(sweep, "--to", "parquet", "--output", tmp_path / "out")
    assert set(pq.read_table(tmp_path / "out")["run"].to_pylist()) == {"one", "two"}


def test_wrong_commands_are_refused_and_leave_nothing(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    cases = {
        (str(runs[0]), "--to", "parquet", "--output", str(tmp_path / "there")): "exists: remove it",
        (str(runs[0]), "--to", "hf", "--output", "s3://bucket/x"): "is not a local directory",
        (str(tmp_path / "no"), "--to", "hf", "--output", str(tmp_path / "x")): "is not the directory of a run",
        (str(runs[0]), str(runs[0]), "--to", "hf", "--output", str(tmp_path / "x")): "exported twice",
        (str(runs[0]), "--to", "hf", "--b64", "--output", str(tmp_path / "x")): "--b64 is for --to openai-batch",
        (str(runs[0]), "--to", "hf", "--with", "pictures"): "'pictures' is not one of images, prompts",
    }
    for arguments, message in cases.items():
        with pytest.raises(SystemExit) as ended:
            export(*arguments)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "there", "two"]


def test_an_export_without_pyarrow_names_the_extra(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SystemExit):
        export(runs[0], "--to", "hf", "--output", tmp_path / "x")
    assert "pip install 'fluxexp[parquet]'" in capsys.readouterr().err


def test_a_killed_export_is_removed_and_two_do_not_meet(tmp_path: Path) -> None:
    left = tmp_path / ".partial-out" / "data"
    left.mkdir(parents=True)
    (left / "file").write_bytes(b"half")
    with target_directory(tmp_path / "out") as folder:
        assert not list(folder.iterdir())
        with pytest.raises(StorageError, match="another process"), target_directory(tmp_path / "out"):
            pass
        (folder / "file").write_bytes(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
