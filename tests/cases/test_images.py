"""Images, masks and tables as people have them: the right pixels, or an error that says what to do."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from fluxexp.address import Address
from fluxexp.config.checks import check
from fluxexp.data import open_dataset, place_for
from fluxexp.data.image_reading import read_image
from fluxexp.data.keys import content_key
from fluxexp.data.windows import window_around
from fluxexp.errors import ConfigError, SampleError
from fluxexp.experiment import SweepPoint, run_experiment, run_sweep
from fluxexp.plan import Plan
from fluxexp.records import task_seed
from fluxexp.storage.image_files import encode_image
from fluxexp.storage.manifest import merge
from tests.cases.making import FAKE, INPUTS, deep_png, mask, masked, pair, run, scene, voc_palette
from tests.cases.profiles import cmyk_profile, gray_profile, rgb_profile
from tests.conftest import Compose
from tests.data.making import array, config_error, folder, keys_of, sample_error, table
from tests.storage.test_manifest import record


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
            file.write_text(
                lines.replace(f" files:{content}", "").replace(f"files:{content}", "") if content else lines
            )
        ImageOps.mirror(mask()).save(folder / "cat_mask.png")
        assert run(compose, tmp_path, folder, "metrics=basic").summary == first.summary

    def test_the_latest_content_counts(self) -> None:
        old, failed = record(inputs="a"), record(inputs="b", status="failed", attempt=2)
        assert merge([old, failed])["k"] == failed
        assert merge([failed, old])["k"] == failed
        assert merge([record(), failed])["k"] == record(), "an older fluxexp did not know the content"


class TestMasks:
    """All kinds of masks that programs write."""

    @pytest.fixture
    def cat(self, tmp_path: Path) -> Path:
        scene().save(tmp_path / "cat.jpg")
        return tmp_path

    def test_values_of_0_and_1(self, cat: Path) -> None:
        for dtype in ("uint8", "uint16", "int32"):
            Image.fromarray(np.asarray(mask(value=1)).astype(dtype)).save(cat / "cat_mask.tif")
            assert (array(folder(cat).load(0).mask) > 0).tolist() == masked().tolist(), dtype

    def test_a_palette_of_classes(self, cat: Path) -> None:
        """Class 8 has the color (64, 0, 0), class 15 is a person."""
        classes = np.where(masked(), np.uint8(8), np.uint8(0))
        classes[40:60, 5:30] = 15
        voc = Image.fromarray(classes, "P")
        voc.putpalette(voc_palette())
        for image in (voc, voc.convert("RGB")):
            image.save(cat / "cat_mask.png")
            assert ((array(folder(cat).load(0).mask) > 0) == (classes > 0)).all()

    def test_red_strokes(self, cat: Path) -> None:
        strokes = Image.composite(Image.new("RGB", (96, 64), "red"), Image.new("RGB", (96, 64)), mask())
        for extension in ("png", "jpg"):
            strokes.save(cat / f"cat_mask.{extension}", quality=95)
            found = array(folder(cat).load(0).mask) > 0
            assert (found != masked()).mean() < (0.02 if extension == "jpg" else 1e-9)
            (cat / f"cat_mask.{extension}").unlink()

    def test_soft_grays_have_a_threshold(self, cat: Path) -> None:
        Image.fromarray(np.tile(np.linspace(0, 255, 96).astype(np.uint8), (64, 1))).save(cat / "cat_mask.png")
        assert array(folder(cat).load(0).mask)[0].tolist() == [255 * (x >= 48) for x in range(96)]

    def test_inverted(self, cat: Path) -> None:
        ImageOps.invert(mask()).save(cat / "cat_mask.png")
        assert ((array(folder(cat, invert_mask=True).load(0).mask) > 0) == masked()).all()

    def test_another_aspect_ratio_is_an_error(self, cat: Path) -> None:
        mask(64, 64).save(cat / "cat_mask.png")
        assert "cat_mask.png: is 64x64 pixels, but its image is 96x64; make the mask" in sample_error(folder(cat), 0)

    def test_a_dark_mask_is_empty(self, cat: Path) -> None:
        mask(value=100).save(cat / "cat_mask.png")
        assert "grays below 128 do not count" in sample_error(folder(cat), 0)

    def test_a_blurred_mask_is_blended(self, compose: Compose, tmp_path: Path) -> None:
        pair(tmp_path / "in")
        hard = run(compose, tmp_path, tmp_path / "in")
        soft = run(compose, tmp_path, tmp_path / "in", "dataset.mask_blur=3")
        assert hard.directory != soft.directory
        made, plain, image = (
            np.asarray(picture.convert("RGB"), int) for picture in (soft.image("cat"), hard.image("cat"), scene())
        )
        opacity = np.asarray(mask().filter(ImageFilter.GaussianBlur(3)), int)[..., None]
        assert (made[opacity[..., 0] == 0] == image[opacity[..., 0] == 0]).all(), "far from the mask nothing changes"
        inside = masked()
        expected = image + (plain - image) * opacity / 255
        assert np.abs(made - expected)[inside].max() <= 1
        border = (opacity[..., 0] > 0) & ~inside
        assert border.any()
        assert (made[border] != image[border]).any(), "the border is soft on both sides"

    @pytest.mark.parametrize("box", [(10, 20, 40, 44), (0, 0, 10, 10), (180, 90, 200, 100), (0, 40, 200, 60)])
    @pytest.mark.parametrize("padding", [0, 7, 32])
    def test_the_crop_is_that_of_diffusers(self, box: tuple[int, int, int, int], padding: int) -> None:
        from diffusers.image_processor import VaeImageProcessor

        own = Image.new("L", (200, 100))
        own.paste(255, box)
        for size in ((96, 64), (64, 96), (64, 64)):
            expected = VaeImageProcessor.get_crop_region(own, *size, pad=padding)
            assert window_around(own, size, padding) == expected

    def test_only_a_crop_is_painted(self, compose: Compose, tmp_path: Path) -> None:
        image = scene(400, 300)
        (tmp_path / "in").mkdir()
        image.save(tmp_path / "in" / "cat.png")
        small = Image.new("L", image.size)
        small.paste(255, (200, 100, 240, 130))
        small.save(tmp_path / "in" / "cat_mask.png")
        config = compose(*FAKE, "dataset=folder", f"dataset.path={tmp_path / 'in'}", "dataset.mask_padding=16")
        placed = place_for(open_dataset(config.dataset).load(0), config)
        assert placed.frame.window == (180, 84, 261, 146)
        assert (placed.width, placed.height) == (400, 304), "the crop is scaled up to the working size"
        assert placed.mask is not None
        assert np.asarray(placed.mask).mean() > 50
        ran = run(compose, tmp_path, tmp_path / "in", "dataset.mask_padding=16", "metrics=basic")
        made, kept = np.asarray(ran.image("cat").convert("RGB")), np.asarray(small) == 0
        assert (made[kept] == np.asarray(image)[kept]).all()
        assert (made[~kept] != np.asarray(image)[~kept]).any()
        assert ran.summary["scores"]["max_difference_kept"]["mean"] == 0

    def test_keys_of_masks_without_masks_are_an_error(self, compose: Compose, tmp_path: Path) -> None:
        for change in ("invert_mask=true", "mask_blur=2", "mask_padding=8"):
            with pytest.raises(ConfigError, match=rf"dataset\.{change.partition('=')[0]}=.*has no effect"):
                check(compose("model=fake", "dataset=folder", "dataset.mask=none", f"dataset.{change}"))


class TestNames:
    """Extensions, upper case and accents of file names."""

    def test_all_that_pillow_reads(self) -> None:
        found = folder(INPUTS / "ext")
        assert keys_of(found) == ["a", "b", "c"]
        assert [found.load(index).mask.getbbox() for index in range(3)] == [mask().getbbox()] * 3  # type: ignore[union-attr]

    def test_skipped_pictures_and_their_masks_are_named(self) -> None:
        found = folder(INPUTS / "ext_more")
        assert keys_of(found) == ["ok", "pic_jp2", "pic_jpe", "pic_pgm", "pic_tga"]
        assert found.notes == [
            "2 pictures skipped, which Pillow cannot read: pic_heic.heic, pic_jxl.jxl",
            "2 masks without a picture of this name: pic_heic_mask.png, pic_jxl_mask.png",
        ]
        assert keys_of(folder(INPUTS / "ext_more", mask="box")) == keys_of(found)

    def test_upper_case(self, tmp_path: Path) -> None:
        for name, suffix in (("IMG_0001", "_MASK.PNG"), ("IMG_0002", "_mask.png")):
            scene().save(tmp_path / f"{name}.JPG")
            mask().save(tmp_path / f"{name}{suffix}")
        (tmp_path / "IMG_0001.TXT").write_text("a red circle")
        found = folder(tmp_path)
        assert keys_of(found) == ["IMG_0001", "IMG_0002"]
        assert [found.load(index).mask.getbbox() for index in range(2)] == [mask().getbbox()] * 2  # type: ignore[union-attr]
        assert found.load(0).prompt == "a red circle"
        assert found.notes == []

    def test_names_that_differ_only_in_case_do_not_share_masks(self, tmp_path: Path) -> None:
        for name in ("cat.png", "CAT.png"):
            scene().save(tmp_path / name)
        mask().save(tmp_path / "CAT_mask.png")
        found = folder(tmp_path)
        assert "cat.png: has no mask" in sample_error(found, keys_of(found).index("cat"))
        assert "2 pictures have the names of others, apart from extension or case: CAT.png, cat.png" in found.notes

    def test_accents(self, tmp_path: Path) -> None:
        """A Mac writes decomposed accents into zip files."""
        composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
        scene().save(tmp_path / f"{decomposed}.jpg")
        mask().save(tmp_path / f"{composed}_mask.png")
        (tmp_path / f"{composed}.txt").write_text("a red circle")
        found = folder(tmp_path, prompt=None)
        assert len(found) == 1
        assert found.load(0).prompt == "a red circle"
        assert found.load(0).mask is not None

    def test_a_folder_of_masks_of_any_type(self, tmp_path: Path) -> None:
        for name in ("a.jpg", "b.jpg"):
            (tmp_path / "img").mkdir(exist_ok=True)
            scene().save(tmp_path / "img" / name)
        (tmp_path / "m").mkdir()
        mask().save(tmp_path / "m" / "a.png")
        mask().save(tmp_path / "m" / "b.jfif", "JPEG")
        mask().save(tmp_path / "m" / "c.png")
        found = folder(tmp_path / "img", masks=str(tmp_path / "m"))
        assert [found.load(index).mask is not None for index in range(2)] == [True, True]
        assert found.notes == ["1 mask without a picture of this name: c.png"]

    def test_what_is_missing_is_counted(
        self, compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name in "abc":
            scene().save(tmp_path / f"{name}.png")
        mask().save(tmp_path / "a_mask.png")
        mask().save(tmp_path / "a-mask.png")
        (tmp_path / "c.txt").write_text("a red circle")
        expected = [
            "1 mask not used, because the picture has another one: a-mask.png",
            "2 samples without a mask, which will fail: b.png, c.png",
            "2 samples without a caption, which will fail: a.png, b.png",
        ]
        assert folder(tmp_path, prompt=None).notes == expected
        drawn = "2 samples without a mask: fluxexp draws it (dataset.mask=box)"
        assert folder(tmp_path, mask="box").notes[1:] == [drawn]
        config = compose("model=fake", "dataset=folder", f"dataset.path={tmp_path}", "debug=plan")
        run_experiment(config, Address.of(tmp_path), [])
        assert [line[11:] for line in capsys.readouterr().out.splitlines() if line.startswith("note")] == expected


class TestColors:
    """Profiles, transparency and bit depths."""

    @pytest.mark.parametrize("format", ["png", "webp", "jpeg"])
    def test_a_profile_stays_with_its_numbers(self, format: str, compose: Compose, tmp_path: Path) -> None:
        profile = rgb_profile()
        image = scene()
        image.info["icc_profile"] = profile
        pair(tmp_path / "in", image=image)
        made = run(compose, tmp_path, tmp_path / "in", f"output.format={format}", "output.quality=100").image("cat")
        assert made.info.get("icc_profile") == profile
        kept = ~masked()
        limit = 40 if format == "jpeg" else 0
        assert np.abs(np.asarray(made, int) - np.asarray(scene(), int))[kept].max() <= limit

    @pytest.mark.parametrize("name", ["print.jpg", "grey.png"])
    def test_a_profile_of_another_space_is_dropped(self, name: str) -> None:
        """These files have the profile of a display, and call it CMYK and gray: it cannot be used."""
        picture = read_image(INPUTS / "icc2" / name)
        assert picture.icc_profile is None
        assert "icc_profile" not in picture.rgb.info
        if name == "print.jpg":
            assert np.abs(np.asarray(picture.rgb, int) - np.asarray(scene(), int)).mean() < 8

    def test_a_transparent_image_keeps_its_profile(self) -> None:
        picture = read_image(INPUTS / "icc2" / "cut.png")
        assert picture.rgba is not None
        assert picture.rgba.getpixel((0, 0)) == (0, 0, 0, 0)
        with Image.open(INPUTS / "icc2" / "cut.png") as image:
            assert picture.icc_profile == image.info["icc_profile"]

    def test_a_gray_profile_is_applied(self, tmp_path: Path) -> None:
        Image.new("L", (8, 8), 128).save(tmp_path / "scan.png", icc_profile=gray_profile(gamma=1.0))
        picture = read_image(tmp_path / "scan.png")
        assert picture.icc_profile is None
        assert picture.rgb.getpixel((0, 0)) == pytest.approx((188, 188, 188), abs=2), "half of the light in sRGB"

    def test_a_cmyk_profile_is_applied(self, tmp_path: Path) -> None:
        green = (150, 60, 180)
        ink = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
        ink.save(tmp_path / "print.tif", icc_profile=cmyk_profile(green))
        picture = read_image(tmp_path / "print.tif")
        red, level, blue = picture.rgb.getpixel((0, 0))  # type: ignore[misc]
        assert level > 1.5 * max(red, blue), "the profile says that cyan is a green"
        assert picture.icc_profile is None
        ink.save(tmp_path / "plain.tif")
        assert read_image(tmp_path / "plain.tif").rgb.getpixel((0, 0)) == (0, 255, 255)

    @pytest.mark.parametrize("format", ["png", "webp", "jpeg"])
    def test_transparency_survives_outside_the_mask(self, format: str, compose: Compose, tmp_path: Path) -> None:
        logo = scene()
        alpha = Image.new("L", logo.size)
        ImageDraw.Draw(alpha).ellipse((8, 4, 88, 60), fill=200)
        logo.putalpha(alpha)
        pair(tmp_path / "in", "logo", logo)
        ran = run(compose, tmp_path, tmp_path / "in", f"output.format={format}", "output.quality=100", "metrics=basic")
        made = ran.image("logo")
        if format == "jpeg":
            assert made.mode == "RGB"
            assert made.getpixel((0, 0)) == pytest.approx((255, 255, 255), abs=3)
            return
        assert made.mode == "RGBA"
        kept = ~masked()
        assert (np.asarray(made)[kept] == np.asarray(logo)[kept]).all(), "also the colors of transparent pixels"
        assert (np.asarray(made)[masked()][:, 3] == 255).all()
        assert ran.summary["scores"]["max_difference_kept"]["mean"] == 0

    def test_a_reduced_bit_depth_is_reported(
        self, compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pair(tmp_path / "in", "gray", Image.fromarray(np.asarray(scene().convert("L")).astype(np.uint16) * 256 + 77))
        pair(tmp_path / "in", "color")
        (tmp_path / "in" / "color.png").write_bytes(deep_png())
        pair(tmp_path / "in", "plain")
        ran = run(compose, tmp_path, tmp_path / "in")
        text = "the image has more than 8 bits per channel and was reduced to 8"
        assert {name: list(record.notes) for name, record in ran.records.items()} == {
            "gray": [text],
            "color": [text],
            "plain": [],
        }
        assert ran.summary["notes"] == {text: 2}
        assert f"2 images: {text}" in capsys.readouterr().out


PHOTOS = sorted([*(INPUTS / "exif").iterdir(), *(INPUTS / "samsung").iterdir()])


class TestFiles:
    """Metadata, and results that cannot be written."""

    @pytest.mark.filterwarnings("ignore:Metadata Warning")
    @pytest.mark.parametrize("file", PHOTOS, ids=lambda file: file.stem)
    def test_only_the_orientation_is_needed(self, file: Path) -> None:
        """The files have tags of a wrong type, rationals without a denominator and damaged parts."""
        turned = {"res2", "oricount2", "orilong", "maker", "undefres", "badtype", "gps", "site"}
        expected = (64, 96) if file.stem in turned else (96, 64)
        assert read_image(file).rgb.size == expected

    def test_a_dataset_runs_no_code(self, tmp_path: Path) -> None:
        """PostScript is a program, which Pillow would start Ghostscript for."""
        scene().save(tmp_path / "cat.eps")
        (tmp_path / "cat.eps").rename(tmp_path / "cat.png")
        with pytest.raises(SampleError, match="is not an image that Pillow can read"):
            read_image(tmp_path / "cat.png")

    def test_a_result_that_is_too_large_for_its_format_fails_alone(self, compose: Compose, tmp_path: Path) -> None:
        pair(tmp_path / "in", "wide", scene(16_500, 16))
        pair(tmp_path / "in", "cat")
        ran = run(compose, tmp_path, tmp_path / "in", "output.format=webp")
        assert ran.summary["status"] == "complete_with_failures"
        assert ran.records["cat"].status == "ok"
        assert "16500x16 pixels, and a webp file has at most 16383 per side; use output.format=png" in str(
            ran.records["wide"].error
        )

    def test_points_of_a_sweep_share_pictures_and_not_the_limits_of_formats(
        self, compose: Compose, tmp_path: Path
    ) -> None:
        pair(tmp_path / "in", "wide", scene(16_500, 16))
        config = (*FAKE, "dataset=folder", f"dataset.path={tmp_path / 'in'}")
        changes = ("output.format=webp", "output.format=png")
        points = [SweepPoint([change], compose(*config, change)) for change in changes]
        outcomes = run_sweep(points, Address.of(tmp_path))
        assert [outcome.status for outcome in outcomes] == ["complete_with_failures", "complete"]

    def test_an_error_of_the_encoder_fails_its_task_alone(
        self, compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail_for_cat(*arguments: Any) -> bytes:
            if arguments[3]["sample_key"] == "cat":
                raise ValueError("cannot encode")
            return encode_image(*arguments)

        pair(tmp_path / "in", "cat")
        pair(tmp_path / "in", "dog")
        monkeypatch.setattr("fluxexp.worker.writer.encode_image", fail_for_cat)
        ran = run(compose, tmp_path, tmp_path / "in")
        assert (ran.summary["num_ok"], ran.summary["num_failed"]) == (1, 1)
        assert ran.records["cat"].error == "ValueError: cannot encode"
        assert ran.records["cat"].file is None

    def test_a_black_result_is_noted(self, compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        black = Image.new("RGB", (96, 64))
        monkeypatch.setattr("fluxexp.models.fake._paint", lambda picture: black)
        pair(tmp_path / "in", "cat")
        assert run(compose, tmp_path, tmp_path / "in").summary["notes"] == {
            "the model painted only one color, RGB (0, 0, 0)": 1
        }


class TestTables:
    """Tables as spreadsheets write them, and tables that change."""

    def test_rows_of_commas_are_skipped_and_counted(self) -> None:
        found = table(INPUTS / "table" / "excel_tail.csv")
        assert len(found) == 1
        assert found.load(0).prompt == "a red circle"
        assert found.notes == ["2 rows without any value, which do not count"]

    def test_semicolons_and_tabs(self, tmp_path: Path) -> None:
        assert table(INPUTS / "table" / "semi.csv").load(0).prompt == "a red circle"
        pair(tmp_path)
        (tmp_path / "t.csv").write_text("prompt\timage\tmask\na red, round circle\tcat.png\tcat_mask.png\n")
        assert table(tmp_path / "t.csv").load(0).prompt == "a red, round circle"

    def test_another_encoding_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_bytes("prompt,image,mask\r\na,cat.png,cat_mask.png\r\n".encode("utf-16"))
        assert "is not UTF-8" in config_error(table, tmp_path / "t.csv")

    def test_urls_of_other_hosts_need_permission(self, tmp_path: Path) -> None:
        message = config_error(table, INPUTS / "table" / "url.csv")
        assert "names files outside of its folder in all 1 rows" in message
        assert "copy the files into the dataset, or set dataset.allowed_folders=[https://example.com]" in message
        pair(tmp_path)
        (tmp_path / "t.csv").write_text("prompt,image,mask\na,cat.png,cat_mask.png\nb,s3://b/cat.png,cat_mask.png\n")
        found = table(tmp_path / "t.csv")
        assert found.load(0).prompt == "a"
        assert "s3://b/cat.png: leads out of the dataset; copy the files into the dataset" in sample_error(found, 1)

    @pytest.mark.parametrize("kind", ["table", "folder", "prompts"])
    def test_a_dataset_at_a_url_that_cannot_be_read_is_an_error(self, kind: str, compose: Compose) -> None:
        url = "http://127.0.0.1:9/cats.csv"  # nothing listens at this port
        config = compose(f"dataset={kind}", f"dataset.path={url}")
        words = "is a URL, and fluxexp reads local files" if kind == "folder" else "cannot be read"
        with pytest.raises(ConfigError, match=words):
            open_dataset(config.dataset)

    def test_unused_columns_are_named(self, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text("prompt,image,mask,author\na cat,cat.png,cat_mask.png,me\n")
        assert table(tmp_path / "t.csv").notes == ["1 column not used: author"]

    def test_a_negative_prompt_of_a_table_is_used(self) -> None:
        dataset = table(INPUTS / "table" / "neg.csv")
        assert not dataset.notes
        assert dataset.sampling_columns.num_negative_prompts == len(dataset)

    def test_a_row_has_its_own_guidance(self, compose: Compose, tmp_path: Path) -> None:
        pair(tmp_path / "in")
        (tmp_path / "in" / "t.csv").write_text(
            "key,prompt,image,mask,guidance\na,x,cat.png,cat_mask.png,7\nb,x,cat.png,cat_mask.png,\nc,x,cat.png,cat_mask.png,much\n"
        )
        overrides = ("dataset=table", f"dataset.path={tmp_path / 'in' / 't.csv'}", "sampling.guidance=3")
        config = compose("model=fake", *overrides)
        plan = Plan.of(config, open_dataset(config.dataset), Address.of(tmp_path))
        assert [task.point.guidance for task in plan.tasks(range(3))] == [7, 3, 3]
        assert plan.task(0).seed == task_seed(plan.point.seed, "a", 0), "the noise is that of the key"
        assert "guidance 'much' is not a number from 0 to 100" in sample_error(plan.dataset, 2)
        (tmp_path / "in" / "t.csv").write_text("key,prompt,image,mask,guidance\na,x,cat.png,cat_mask.png,8\n")
        changed = Plan.of(plan.config, open_dataset(plan.config.dataset), Address.of(tmp_path))
        assert changed.task(0).key != plan.task(0).key
        assert changed.task(0).seed == plan.task(0).seed

    @pytest.mark.parametrize("extension", ["csv", "jsonl"])
    def test_an_edited_table_is_refused(self, extension: str, tmp_path: Path) -> None:
        """The rows would be read at the places of the old ones."""
        pair(tmp_path)
        file = tmp_path / f"t.{extension}"
        row = {"prompt": "one", "image": "cat.png", "mask": "cat_mask.png"}
        lines = [json.dumps(row), json.dumps({**row, "prompt": "two"})]
        if extension == "csv":
            lines = ["prompt,image,mask", "one,cat.png,cat_mask.png", "two,cat.png,cat_mask.png"]
        file.write_text("\n".join(lines))
        found = table(file)
        identity = found.identity(1)
        assert found.load(1).prompt == "two"
        file.write_text("\n".join(lines).replace("one", "one and a half"))
        assert f"{file}, row 2: changed after it was opened; start the run again" in sample_error(found, 1)
        assert found.identity(1) == identity, "the failed record is that of the task that was planned"

    def test_the_identity_of_a_row_is_that_of_older_versions(self) -> None:
        """So their runs continue."""
        row = {"prompt": "a red circle", "image": "cat.png", "mask": "cat_mask.png"}
        assert table(INPUTS / "table" / "excel_tail.csv").identity(0) == content_key(row) == "db36646a530c"

    def test_missing_values_are_counted(self, tmp_path: Path) -> None:
        pair(tmp_path)
        (tmp_path / "t.csv").write_text("prompt,image,mask\n,cat.png,cat_mask.png\nx,cat.png,\ny,cat.png,\n")
        assert table(tmp_path / "t.csv").notes == [
            "1 row without a prompt, which will fail",
            "2 rows without a mask, which will fail",
        ]
