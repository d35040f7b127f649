"""Images, masks and tables as people have them: the right pixels, or an error that says what to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from fluxexp.data import file_content
from fluxexp.data.file_content import FileHashes
from fluxexp.storage.manifest import merge
from tests.cases.making import mask, run, scene
from tests.conftest import Compose
from tests.storage.test_manifest import record


def pair(folder: Path, name: str = "cat") -> None:
    """An image with a mask."""
    folder.mkdir(exist_ok=True)
    scene().save(folder / f"{name}.png")
    mask().save(folder / f"{name}_mask.png")


class TestIdentity:
    """Results belong to the content of the image and the mask, scores to that of the ground truth, too."""

    def test_a_changed_mask_is_painted_again(self, compose: Compose, tmp_path: Path) -> None:
        folder = tmp_path / "in"
        pair(folder, "cat")
        pair(folder, "dog")
        first = run(compose, tmp_path, folder, "metrics=basic")
        before = {name: first.file(name).read_bytes() for name in ("cat", "dog")}
        ImageOps.mirror(mask()).save(folder / "cat_mask.png")
        second = run(compose, tmp_path, folder, "metrics=basic")
        assert second.directory == first.directory
        assert (second.summary["num_resumed"], second.summary["num_ok"]) == (1, 2)
        assert second.summary["scoring"]["num_scored"] == 1
        assert second.file("dog").read_bytes() == before["dog"]
        changed = second.image("cat").convert("RGB")
        painted = {(x, y) for x in range(96) for y in range(64) if changed.getpixel((x, y)) != scene().getpixel((x, y))}
        box = ImageOps.mirror(mask()).getbbox()
        assert box is not None
        assert painted
        assert all(box[0] <= x < box[2] and box[1] <= y < box[3] for x, y in painted)
        assert second.records["cat"].attempt == 2
        assert run(compose, tmp_path, folder, "metrics=basic").summary == second.summary, "nothing is left to do"

    def test_a_changed_image_is_used(self, compose: Compose, tmp_path: Path) -> None:
        folder = tmp_path / "in"
        pair(folder)
        run(compose, tmp_path, folder)
        ImageOps.flip(scene()).save(folder / "cat.png")
        second = run(compose, tmp_path, folder)
        assert second.image("cat").convert("RGB").getpixel((0, 0)) == ImageOps.flip(scene()).getpixel((0, 0))

    def test_a_touched_file_is_not_changed(self, compose: Compose, tmp_path: Path) -> None:
        folder = tmp_path / "in"
        pair(folder)
        first = run(compose, tmp_path, folder)
        scene().save(folder / "cat.png")
        os.utime(folder / "cat_mask.png", (1, 1))
        assert run(compose, tmp_path, folder).summary == first.summary

    def test_a_mask_that_broke_fails_its_sample(self, compose: Compose, tmp_path: Path) -> None:
        """The earlier image belongs to the earlier mask."""
        folder = tmp_path / "in"
        pair(folder)
        run(compose, tmp_path, folder)
        Image.new("L", (96, 64), 0).save(folder / "cat_mask.png")
        second = run(compose, tmp_path, folder)
        assert second.summary["num_failed"] == 1
        assert "the mask is empty" in str(second.records["cat"].error)

    def test_a_changed_truth_is_scored_again_and_nothing_else(self, compose: Compose, tmp_path: Path) -> None:
        folder, truths = tmp_path / "in", tmp_path / "truths"
        pair(folder)
        truths.mkdir()
        scene().save(truths / "cat.png")
        arguments = ("metrics=basic", f"dataset.truths={truths}")
        first = run(compose, tmp_path, folder, *arguments)
        ImageOps.invert(scene()).save(truths / "cat.png")
        second = run(compose, tmp_path, folder, *arguments)
        assert second.summary["scoring"]["num_scored"] == 1
        assert second.summary["num_ok"] == 1
        assert second.records["cat"].attempt == 1
        assert second.summary["scores"]["psnr_hole"] != first.summary["scores"]["psnr_hole"]
        assert run(compose, tmp_path, folder, *arguments).summary == second.summary

    def test_results_of_an_older_fluxexp_stay(self, compose: Compose, tmp_path: Path) -> None:
        """Their records do not have the content of the files."""
        folder = tmp_path / "in"
        pair(folder)
        first = run(compose, tmp_path, folder, "metrics=basic")
        path = first.directory.address.local_path()
        for file in (*path.glob("manifest/*"), *path.glob("scores/*.jsonl")):
            lines = file.read_text().replace(f'"inputs":"{first.records["cat"].inputs}"', '"inputs":null')
            content = lines.partition("files:")[2][:16]
            file.write_text(lines.replace(f"files:{content}", "") if content else lines)
        ImageOps.mirror(mask()).save(folder / "cat_mask.png")
        assert run(compose, tmp_path, folder, "metrics=basic").summary == first.summary

    def test_the_latest_content_counts(self) -> None:
        old, failed = record(inputs="a"), record(inputs="b", status="failed", attempt=2)
        assert merge([old, failed])["k"] == failed
        assert merge([failed, old])["k"] == failed
        assert merge([record(), failed])["k"] == record(), "an older fluxexp did not know the content"

    def test_a_file_is_hashed_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        file = tmp_path / "a.png"
        file.write_bytes(b"one")
        os.utime(file, (1e9, 1e9))
        digest = FileHashes()(file)
        monkeypatch.setattr(file_content.hashlib, "file_digest", None)
        assert FileHashes()(file) == digest, "another process reads it from the cache"
        monkeypatch.undo()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        file.write_bytes(b"two")
        os.utime(file, (1e9 + 1, 1e9 + 1))
        assert FileHashes()(file) not in (None, digest)
        assert FileHashes()(tmp_path / "missing.png") is None

    def test_a_file_that_just_changed_is_hashed_again(self, tmp_path: Path) -> None:
        file, hashes = tmp_path / "a.png", FileHashes()
        file.write_bytes(b"one")
        stamp = file.stat().st_mtime_ns
        first = hashes(file)
        file.write_bytes(b"two")
        os.utime(file, ns=(stamp, stamp))
        assert hashes(file) != first
