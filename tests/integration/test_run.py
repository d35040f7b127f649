"""One run, from the command to its results."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from fluxexp.config.model_paths import model_directory
from fluxexp.storage.image_files import read_metadata
from tests.program import FAKE, TINY, Done, Program, read_events


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A run with two batches of two images."""
    changes = ("dataset.limit=4", "sampling.batch_size=2", "seed=5", "sampling.guidance=7")
    return Program(tmp_path_factory.mktemp("main")).run("+experiment=fill", *TINY, *changes)


def test_a_run_writes_all_its_files(done: Done) -> None:
    assert done.returncode == 0, done.stderr
    summary = done.summary
    assert summary["status"] == "complete"
    assert (summary["num_tasks"], summary["num_ok"], summary["num_failed"], summary["num_resumed"]) == (4, 4, 0, 0)
    assert summary["world_size"] == 1
    assert summary["wall_s"] >= summary["ranks"][0]["busy_s"] > 0
    assert summary["warmup_s"] > 0
    assert summary["images_per_s"] == pytest.approx(summary["ranks"][0]["images_per_s"], rel=1e-3)
    assert summary["balance"] == {
        "imbalance": 1.0,
        "efficiency": pytest.approx(0.5, abs=0.5),
        "straggler": None,
        "cause": None,
        "idle_s": 0.0,
        "slow_ranks": [],
    }
    assert summary["ranks"][0]["num_images"] == 4
    assert set(summary["versions"]) >= {"python", "torch", "diffusers", "fluxexp"}
    assert summary["tracking"]["mode"] == "disabled"
    for record in done.records.values():
        assert record.status == "ok"
        assert record.file is not None
        assert (record.steps, record.guidance, record.height, record.width) == (2, 7.0, 64, 64)
        assert set(record.seconds) == {"condition", "denoise", "decode", "write"}
        assert all(seconds > 0 for seconds in record.seconds.values())
        metadata = read_metadata(done.directory / record.file)
        assert metadata["prompt"] == record.prompt
        assert metadata["seed"] == record.seed
        assert metadata["model"] == "tiny_fill"
        assert (metadata["steps"], metadata["guidance"]) == (2, 7.0)
    config = yaml.safe_load((done.directory / "config.yaml").read_text())
    assert config["sampling"]["guidance"] == 7.0
    assert config["sampling"]["seed"] == 5
    assert "sampling.guidance=7" in yaml.safe_load((done.directory / "overrides.yaml").read_text())
    assert {path.name for path in done.directory.iterdir()} == {
        ".lock",
        "images",
        "manifest",
        "attempts",
        "sessions.jsonl",
        "events",
        "config.yaml",
        "overrides.yaml",
        "fingerprint.json",
        "summary.json",
    }


def test_events_follow_one_another_and_mark_the_warm_up(done: Done) -> None:
    (file,) = (done.directory / "events").iterdir()
    events = read_events(file)
    device = [event for event in events if event.span in ("condition", "denoise", "decode")]
    assert [event.span for event in device if not event.warmup] == ["condition", "denoise", "decode"] * 2
    assert [event.warmup for event in device] == [True] + [False] * 6
    for earlier, later in pairwise(sorted(device, key=lambda event: event.start_s)):
        assert earlier.end_s <= later.start_s
    assert sum(event.span == "write" for event in events) == 4
    assert events[0].span == "load"


@pytest.mark.parametrize("format", ["webp", "jpeg"])
def test_other_formats(program: Program, format: str) -> None:
    done = program.run(*FAKE, "dataset.limit=1", f"output.format={format}")
    ((name, _),) = done.images.items()
    assert name.endswith(f".{format}")
    with Image.open(done.directory / "images" / name) as image:
        assert image.format == format.upper()


def test_results_have_the_size_of_the_input_and_equal_it_in_the_unmasked_region(program: Program) -> None:
    folder = program.cwd / "photos"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (70, 101, 3), dtype=np.uint8)
    mask = np.zeros((70, 101), np.uint8)
    mask[20:50, 30:60] = 255
    Image.fromarray(pixels).save(folder / "a cat.png")
    Image.fromarray(mask).save(folder / "a cat_mask.png")
    (folder / "broken.png").write_bytes(b"no picture")
    Image.fromarray(mask).save(folder / "broken_mask.png")
    done = program.run(
        "dataset=folder", f"dataset.path={folder}", "dataset.prompt=a cat", "tracking=disabled", "sampling.steps=1"
    )
    assert done.returncode == 3, "a failed task shows in the exit code"
    assert done.summary["status"] == "complete_with_failures"
    by_sample = {record.sample_key: record for record in done.records.values()}
    assert by_sample["broken"].status == "failed"
    assert "broken.png: is not an image" in str(by_sample["broken"].error)
    made = by_sample["a cat"]
    assert made.file is not None
    result = np.asarray(Image.open(done.directory / made.file).convert("RGB"))
    assert result.shape == pixels.shape
    assert np.array_equal(result[mask == 0], pixels[mask == 0])
    assert not np.array_equal(result[mask > 0], pixels[mask > 0])


def test_text_to_image_from_a_file_of_prompts(program: Program) -> None:
    (program.cwd / "prompts.txt").write_text("a red star\n\nein blauer Ring <b>&</b> ☂\n", encoding="utf-8")
    done = program.run(
        "+experiment=text_to_image",
        "dataset=prompts",
        "dataset.path=prompts.txt",
        "sampling.steps=1",
        "sampling.height=48",
        "sampling.images_per_sample=2",
        "tracking=disabled",
    )
    assert done.returncode == 0, done.stderr
    assert {record.prompt for record in done.records.values()} == {"a red star", "ein blauer Ring <b>&</b> ☂"}
    assert len(done.images) == 4
    assert len(set(done.images.values())) == 4, "variants differ in their noise"
    assert {(record.width, record.height) for record in done.records.values()} == {(48, 48)}


def test_image_to_image_from_a_folder_of_pictures_without_masks(program: Program) -> None:
    folder = program.cwd / "photos"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (70, 101, 3), dtype=np.uint8)
    for name in ("cat.png", "dog.png", "dog_mask.png"):
        Image.fromarray(pixels).save(folder / name)
    done = program.run(
        "+experiment=img2img",
        "dataset=folder",
        f"dataset.path={folder}",
        "dataset.mask=none",
        "dataset.prompt=a pet",
        "sampling.steps=2",
        "metrics=basic",
        "report=html",
        "tracking=disabled",
    )
    assert done.returncode == 0, done.stderr
    assert {record.sample_key for record in done.records.values()} == {"cat", "dog"}
    for record in done.records.values():
        assert (record.width, record.height) == (96, 64)
        assert record.file is not None
        with Image.open(done.directory / record.file) as image:
            assert image.size == (96, 64), "the whole working image, with nothing pasted back"
    assert "saturated" in done.summary["scores"]
    assert not any("hole" in name for name in done.summary["scores"]), "there is no masked region to score"
    assert (done.directory / "report.html").is_file()


def test_kontext_inpaint_with_references_from_a_folder(program: Program) -> None:
    random = np.random.default_rng(0)
    for name, size in (("photos/cat", (70, 101)), ("photos/dog", (70, 101)), ("looks/cat", (40, 40))):
        file = program.cwd / f"{name}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(file)
    command = (
        "+experiment=kontext_inpaint",
        "dataset=folder",
        f"dataset.path={program.cwd / 'photos'}",
        f"dataset.references={program.cwd / 'looks'}",
        "dataset.mask=center",
        "dataset.prompt=a pet",
        "sampling.steps=2",
        "report=html",
        "tracking=disabled",
    )
    done = program.run(*command)
    assert done.returncode == 3, done.stderr
    records = {record.sample_key: record for record in done.records.values()}
    assert records["cat"].status == "ok"
    assert "has no reference for dog.png" in str(records["dog"].error)
    assert records["cat"].file is not None
    with Image.open(done.directory / records["cat"].file) as image:
        assert image.size == (101, 70), "the masked region is pasted into the image"
    page = (done.directory / "report.html").read_text()
    assert '"reference": "data:image' in page or '"reference":"data:image' in page


def test_a_model_that_cannot_be_loaded_ends_the_run_without_a_traceback(program: Program, tmp_path: Path) -> None:
    embedded = model_directory("embedded:tiny_fill")
    assert embedded
    model = shutil.copytree(embedded, tmp_path / "model")
    # Only the library finds this fault: it has no tokenizer of this type.
    (model / "tokenizer_2" / "tokenizer.json").write_text('{"model": {"type": "Riddle", "vocab": {"a": 0}}}')
    done = program.run(f"model.path={model}", "tracking=disabled")
    assert done.returncode == 1
    assert "cannot be loaded as FluxFillPipeline" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.summary["status"] == "incomplete"


def test_a_closed_stdout_does_not_stop_a_run(program: Program) -> None:
    """The reader of the program's output closes the pipe, like `head`."""
    with program.start(*FAKE, "model.seconds_per_step=[0.05]", "sampling.steps=1", "dataset.limit=8") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        process.wait(timeout=60)
    (directory,) = program.directories()
    assert len(list((directory / "images").iterdir())) == 8
    assert (directory / "summary.json").is_file()


def test_a_step_cache_and_its_computed_steps_are_in_the_summary(program: Program) -> None:
    cache = ("optimization/step_cache=taylorseer", "optimization.step_cache.warmup_steps=2")
    done = program.run("+experiment=fill", *TINY, *cache, "dataset.limit=1", "sampling.steps=6", "report=html")
    assert done.returncode == 0, done.stderr
    assert {"hoist_constants", "step_cache=taylorseer"} <= set(done.summary["applied_optimizations"])
    assert done.summary["computed_steps_mean"] == 4  # of steps 0 to 5: 0 and 1, 4, and the last
    assert "taylorseer \u00b7 full steps per image 4" in (done.directory / "report.html").read_text()
