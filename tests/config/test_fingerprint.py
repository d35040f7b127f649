from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fluxexp.config import RunConfig, fingerprint, fingerprint_payload, model_paths
from fluxexp.config.model_paths import model_directory

Compose = Callable[..., RunConfig]


@pytest.mark.parametrize(
    "change",
    [
        "sampling.steps=3",
        "sampling.guidance=2",
        "sampling.true_cfg_scale=2",
        "sampling.negative_prompt=x",
        "sampling.negative_prompt=''",
        "sampling.prompt_2=x",
        "sampling.seed=7",
        "seed=7",
        "sampling.height=64",
        "sampling.strength=0.5",
        "sampling.max_sequence_length=8",
        "sampling.max_pixels=4096",
        "scheduler=flow_match_heun",
        "scheduler.shift=1.5",
        "model=fake",
        "model.dtype=bfloat16",
        "dataset.seed=1",
        "dataset.height=256",
        "dataset.placement=crop",
        "output.format=webp",
        "output.paste=false",
        "optimization.vae_tiling=true",
        "optimization/step_cache=first_block",
    ],
)
def test_keys_that_change_pixels_change_the_fingerprint(compose: Compose, change: str) -> None:
    assert fingerprint(compose(change)) != fingerprint(compose())


def test_the_defaults_of_negative_prompts_are_not_in_the_fingerprint(compose: Compose) -> None:
    """So older runs keep their fingerprints, and their tasks their keys."""
    assert not fingerprint_payload(compose())["sampling"].keys() & {"true_cfg_scale", "negative_prompt", "prompt_2"}


@pytest.mark.parametrize("change", ["invert_mask=true", "mask_blur=2", "mask_padding=0"])
@pytest.mark.parametrize("kind", ["folder", "table"])
def test_keys_of_masks_change_the_fingerprint_and_their_defaults_do_not(
    compose: Compose, change: str, kind: str
) -> None:
    config = compose(f"dataset={kind}")
    assert fingerprint(compose(f"dataset={kind}", f"dataset.{change}")) != fingerprint(config)
    assert not fingerprint_payload(config)["dataset"].keys() & {"invert_mask", "mask_blur", "mask_padding"}


@pytest.mark.parametrize(
    "change",
    [
        "name=other",
        "sampling.batch_size=1",
        "sampling.images_per_sample=3",
        "dataset.limit=2",
        "dataset.length=9",
        "parallelism.expect_world_size=2",
        "parallelism=context",
        "tracking=disabled",
        "tracking.project=x",
        "output.dir=elsewhere",
        "output.overwrite=true",
        "output.quality=50",  # of a png, it says nothing
        "model.name=mine",
        "debug=plan",
    ],
)
def test_other_keys_do_not_change_the_fingerprint(compose: Compose, change: str) -> None:
    assert fingerprint(compose(change)) == fingerprint(compose())


def test_a_step_caches_values_count(compose: Compose) -> None:
    cached = "optimization/step_cache=taylorseer"
    assert fingerprint(compose(cached)) != fingerprint(compose(cached, "optimization.step_cache.order=2"))


def test_quality_counts_only_for_lossy_formats(compose: Compose) -> None:
    assert fingerprint(compose("output.format=jpeg")) != fingerprint(compose("output.format=jpeg", "output.quality=50"))


def test_speed_of_the_fake_model_does_not_count(compose: Compose) -> None:
    assert fingerprint(compose("model=fake")) == fingerprint(compose("model=fake", "model.seconds_per_step=[1,2]"))


def test_a_local_model_is_identified_by_content_and_not_by_path(compose: Compose, tmp_path: Path) -> None:
    def model_at(path: Path, weights: bytes) -> str:
        (path / "transformer").mkdir(parents=True)
        (path / "model_index.json").write_text(json.dumps({"_class_name": "FluxFillPipeline"}))
        (path / "transformer" / "model.safetensors").write_bytes(weights)
        return fingerprint(compose(f"model.path={path}"))

    here, there = model_at(tmp_path / "a", b"weights"), model_at(tmp_path / "b" / "c", b"weights")
    assert here == there
    assert model_at(tmp_path / "d", b"wEights") != here


def test_an_embedded_model_is_identified_by_its_weights(
    compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = model_directory("embedded:tiny_dev")
    assert shipped is not None
    asked = ["+experiment=text_to_image"]
    before = fingerprint(compose(*asked))
    copied = shutil.copytree(shipped.parent, tmp_path / "embedded", symlinks=True)
    monkeypatch.setattr(model_paths, "_SHIPPED", copied)
    assert fingerprint(compose(*asked)) == before
    shared = copied / "tiny_fill" / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(shared.read_bytes())
    content[len(content) // 2] ^= 1
    shared.write_bytes(content)
    assert fingerprint(compose(*asked)) != before, "tiny_dev shares the autoencoder of tiny_fill"
