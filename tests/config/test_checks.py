from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fluxexp.config import RunConfig, check
from fluxexp.config.checks import ATTENTION_BACKENDS
from fluxexp.errors import ConfigError

Compose = Callable[..., RunConfig]


def answer(config: RunConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        check(config)
    return str(caught.value)


def make_model(path: Path, class_name: str = "FluxFillPipeline") -> Path:
    for name in ("scheduler", "tokenizer", "tokenizer_2"):
        (path / name).mkdir(parents=True)
    for name in ("text_encoder", "text_encoder_2", "transformer", "vae"):
        (path / name).mkdir()
        (path / name / "model.safetensors").write_bytes(b"")
    (path / "model_index.json").write_text(json.dumps({"_class_name": class_name}))
    return path


def test_the_default_and_hub_ids_pass(compose: Compose) -> None:
    check(compose())
    check(compose("model=flux_fill"))


def test_a_whole_directory_passes(compose: Compose, tmp_path: Path) -> None:
    check(compose("model=flux_fill", f"model.path={make_model(tmp_path / 'm')}"))


def test_missing_directory(compose: Compose) -> None:
    assert "model.path='no/such/place': is not a directory" in answer(compose("model.path=no/such/place"))


def test_directory_without_index(compose: Compose, tmp_path: Path) -> None:
    assert "holds no model_index.json" in answer(compose(f"model.path={tmp_path}"))


def test_file_instead_of_directory(compose: Compose, tmp_path: Path) -> None:
    file = tmp_path / "flux.safetensors"
    file.touch()
    assert "is a file" in answer(compose(f"model.path={file}"))


def test_damaged_index(compose: Compose, tmp_path: Path) -> None:
    (make_model(tmp_path / "m") / "model_index.json").write_text("{")
    assert "damaged model_index.json" in answer(compose(f"model.path={tmp_path / 'm'}"))


def test_model_of_another_family(compose: Compose, tmp_path: Path) -> None:
    said = answer(compose(f"model.path={make_model(tmp_path / 'm', 'FluxPipeline')}"))
    assert "holds a FluxPipeline, and model.family is flux_fill" in said
    assert "use model.family=flux" in said


def test_incomplete_download(compose: Compose, tmp_path: Path) -> None:
    path = make_model(tmp_path / "m")
    (path / "vae" / "model.safetensors").unlink()
    (path / "tokenizer_2").rmdir()
    said = answer(compose(f"model.path={path}"))
    assert "lacks tokenizer_2" in said
    assert "no safetensors in vae/" in said


def test_unknown_embedded_model(compose: Compose) -> None:
    assert "embedded: tiny_dev, tiny_fill" in answer(compose("model.path=embedded:huge"))


def test_filling_needs_images(compose: Compose, tmp_path: Path) -> None:
    assert "has no images" in answer(compose("dataset=prompts", f"dataset.path={tmp_path}"))


def test_text_to_image_cannot_paste_or_start_from_an_image(compose: Compose) -> None:
    said = answer(compose("model=tiny_dev", "sampling.strength=0.5"))
    assert "output.paste=True" in said
    assert "sampling.strength=0.5" in said


def test_world_size(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "but 1 process(es) were started" in answer(compose("parallelism.expect_world_size=2"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29500")
    check(compose("parallelism.expect_world_size=2"))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("parallelism.context_size=3",), "parallelism.context_size=3: does not divide the 8 processes"),
        (("optimization.hoist_constants=false",), "optimization.hoist_constants=False: must be on for 8 ranks"),
        (("optimization.fp8_attention=true",), "optimization.fp8_attention=True: is not made for 8 ranks"),
        (("parallelism.context_kind=ring", "optimization.attention_backend=sage"), "is not used by"),
        (("sampling.max_sequence_length=7",), "sampling.max_sequence_length=7: is too short for 8 ranks"),
        (
            ("model=tiny_fill", "model.weights=pretrained"),
            "parallelism.context_size=8: is more than the 5 attention heads",
        ),
    ],
)
def test_what_ranks_cannot_make_together(
    compose: Compose, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], expected: str
) -> None:
    random = ("model=flux_fill", "model.weights=random")
    check(compose("parallelism=context", *random, *overrides))  # one process makes images by itself
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29500")
    check(compose("parallelism=context", *random))
    assert expected in answer(compose("parallelism=context", *random, *overrides))


def test_context_size_where_it_means_nothing(compose: Compose) -> None:
    assert "has no meaning with parallelism.mode=data" in answer(
        compose("parallelism=data", "parallelism.context_size=2")
    )


def test_attention_backends_are_those_of_diffusers(compose: Compose) -> None:
    from diffusers.models.attention_dispatch import AttentionBackendName

    assert {backend.value for backend in AttentionBackendName} == ATTENTION_BACKENDS
    assert "did you mean 'flash'?" in answer(compose("optimization.attention_backend=flsh"))
    check(compose("optimization.attention_backend=native"))


def test_a_step_cache_works_on_the_blocks_one_by_one(compose: Compose) -> None:
    cached = "optimization/step_cache=first_block"
    config = compose(cached)
    check(config)
    assert config.optimization.hoist_constants is True, "auto means on for it, on any device"
    assert "optimization.hoist_constants=False: must be on" in answer(compose(cached, "optimization=none"))


@pytest.mark.parametrize("offload", ["group", "sequential"])
def test_blocks_that_come_one_by_one_are_called_one_by_one(compose: Compose, offload: str) -> None:
    asked = f"optimization.offload={offload}"
    assert f"must be on for offload={offload}" in answer(compose(asked, "optimization.hoist_constants=false"))
    check(compose(asked))
    check(compose("optimization.offload=model", "optimization.hoist_constants=false"))


def test_step_caches_that_cannot_work(compose: Compose) -> None:
    heun = "scheduler=flow_match_heun"
    assert "evaluates each noise level twice" in answer(compose("optimization/step_cache=taylorseer", heun))
    check(compose("optimization/step_cache=first_block", heun))
    empty = compose("optimization/step_cache=magcache", "optimization.step_cache.ratios=[]")
    assert "optimization.step_cache.ratios='[]': must not be empty" in answer(empty)
