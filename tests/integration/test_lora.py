"""LoRAs in real runs: sweeps over scale and file in one pool, and a LoRA for each row of a table."""

from __future__ import annotations

import csv
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests import lora_files
from tests.program import Program, read_events

DEV = (
    "+experiment=text_to_image",
    "tracking=disabled",
    "metrics=none",
    "report=off",
    "sampling.steps=1",
    "sampling.height=64",
    "sampling.width=64",
)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    one = lora_files.kohya(tmp_path / "one.safetensors", 1, text=True)
    return one, lora_files.peft_with(tmp_path / "two.safetensors", 2, alpha=8.0)


def test_scale_and_file_are_axes_of_one_sweep(program: Program, files: tuple[str, str]) -> None:
    sweep = program.sweep(
        *DEV, "dataset.limit=4", "sampling.batch_size=2", f"lora.path={','.join(files)}", "lora.scale=0,0.5,1"
    )
    assert sweep.returncode == 0, sweep.stderr
    assert "models     1, each loaded once" in sweep.stdout
    images = {
        (path, scale): sweep.run(f"lora.path={path}", f"lora.scale={scale}").images
        for path in files
        for scale in ("0", "0.5", "1")
    }
    pictures = {key: sorted(map(pixels, found.values())) for key, found in images.items()}
    assert len({tuple(found) for found in pictures.values()}) == 5  # at scale 0 a LoRA changes nothing
    assert pictures[files[0], "0"] == pictures[files[1], "0"]
    (log,) = (sweep.directory / "events").iterdir()
    batches = [event for event in read_events(log) if event.span == "denoise" and not event.warmup]
    runs = [next(iter(event.extra["runs"])) for event in batches]
    assert sum(one != other for one, other in pairwise(runs)) == 5  # the LoRA changes once per set


@pytest.mark.slow
def test_each_row_of_a_table_has_its_lora(program: Program, files: tuple[str, str], tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"key": "a", "prompt": "a red star", "lora": "one.safetensors", "lora_scale": "0.5"},
        {"key": "b", "prompt": "a red star", "lora": "two.safetensors", "lora_scale": ""},
        {"key": "c", "prompt": "a red star", "lora": "", "lora_scale": ""},
        {"key": "d", "prompt": "a red star", "lora": "missing.safetensors", "lora_scale": "1"},
        {"key": "e", "prompt": "a red star", "lora": "../outside.safetensors", "lora_scale": "1"},
        {"key": "f", "prompt": "a red star", "lora": "one.safetensors", "lora_scale": "much"},
    ]
    folder = tmp_path / "data"
    folder.mkdir()
    for file in files:
        Path(file).rename(folder / Path(file).name)
    lora_files.peft_with(tmp_path / "outside.safetensors")
    with (folder / "rows.csv").open("w") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    run = program.run(*DEV, f"dataset.path={folder / 'rows.csv'}", "dataset=prompts")
    records = {record.sample_key: record for record in run.attempts}
    assert {key for key, record in records.items() if record.status == "ok"} == {"a", "b", "c"}
    assert "No such file" in str(records["d"].error)
    assert "leads out of the dataset" in str(records["e"].error)
    assert "lora_scale 'much' is not a number" in str(records["f"].error)
    again = program.run(*DEV, f"lora.path={folder / 'one.safetensors'}", "lora.scale=0.5", "dataset=prompts",
                        f"dataset.path={_only(folder, rows[0])}")  # fmt: skip
    (image,) = again.images.values()
    assert pixels(image) in map(pixels, run.images.values())


def pixels(file: bytes) -> bytes:
    return Image.open(BytesIO(file)).tobytes()


def _only(folder: Path, row: dict[str, Any]) -> Path:
    path = folder / "only.csv"
    path.write_text(f"key,prompt\n{row['key']},{row['prompt']}\n")
    return path
