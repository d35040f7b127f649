from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from fluxexp.config.families import FAMILIES
from fluxexp.config.lora_checks import model_shapes
from fluxexp.config.model_layouts import FLUX_DEV, FLUX_FILL, LAYOUTS
from fluxexp.config.schema import NO_FILES, FluxModelConfig
from fluxexp.models.flux1.flux1_model import Flux1Model
from fluxexp.models.loading.random_weights import pipeline_without_weights, random_pipeline
from tests.models.conftest import fill_inputs, inputs_of, point, run
from tests.models.small_layouts import scaled_down

CPU = torch.device("cpu")


def random_model(family: str, layout: str) -> FluxModelConfig:
    return FluxModelConfig(
        family=family,
        name=layout,
        path="",
        base=None,
        files=NO_FILES,
        revision=None,
        variant=None,
        sha256=None,
        weights="random",
        layout=layout,
        dtype="float32",
        resolution=128,
    )


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "billions"),
    [("flux_dev", 11.901), ("flux_fill", 11.902), ("flux_control", 11.902), ("flux_schnell", 11.891)],
)
def test_layouts_have_the_parameter_counts_of_the_published_models(name: str, billions: float) -> None:
    """Published counts: transformer 11.9 billion, T5-XXL's encoder 4.76 billion, CLIP-L 123 million."""
    layout = LAYOUTS[name]
    with torch.device("meta"):
        assert count(FluxTransformer2DModel(**layout.transformer)) / 1e9 == pytest.approx(billions, abs=5e-4)
        assert count(T5EncoderModel(T5Config(**layout.t5))) / 1e9 == pytest.approx(4.762, abs=5e-4)
        assert count(CLIPTextModel(CLIPTextConfig(**layout.clip))) / 1e6 == pytest.approx(123.06, abs=5e-3)
        assert count(AutoencoderKL(**layout.vae)) / 1e6 == pytest.approx(83.82, abs=5e-3)


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_the_shapes_that_loras_are_checked_with_are_those_of_the_modules(name: str) -> None:
    family = next(family for family in FAMILIES.values() if name in family.layouts)
    pipeline: Any = pipeline_without_weights(LAYOUTS[name], torch.float32, family)
    shapes = model_shapes(random_model(family.name, name))
    for component in ("transformer", "text_encoder"):
        module = getattr(pipeline, component)
        tensors = getattr(module, "text_model", module).state_dict()
        assert shapes[component] == {key: tuple(tensor.shape) for key, tensor in tensors.items()}


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_every_layout_runs_scaled_down(name: str) -> None:
    pipeline = random_pipeline(scaled_down(LAYOUTS[name]), CPU, torch.float32)
    model = Flux1Model(pipeline, CPU)
    assert name in model.family.layouts
    latents = run(model, inputs_of(model.family.name), [point(2)] * 3)
    assert torch.isfinite(latents).all()
    assert latents.std() > 0.1


def test_the_seed_determines_the_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        pipeline = random_pipeline(scaled_down(FLUX_DEV), CPU, torch.bfloat16, seed)
        weight = pipeline.transformer.x_embedder.weight
        assert isinstance(weight, torch.Tensor)
        assert weight.dtype == torch.bfloat16
        return weight.detach()

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.gpu
def test_the_full_size_model_is_built_on_the_device_and_runs() -> None:
    device = torch.device("cuda")
    pipeline = random_pipeline(FLUX_FILL, device, torch.bfloat16)
    model = Flux1Model(pipeline, device)
    latents = run(model, fill_inputs(256, 256, 1), [point(1)])
    assert latents.device.type == "cuda"
    assert torch.isfinite(latents).all()
