"""Small networks with random weights, on disk in the layout of the real ones, and configs that use them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fluxexp.config import RunConfig
from fluxexp.config.model_paths import model_directory


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP model with the tokenizer of the embedded model."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    path = tmp_path_factory.mktemp("models") / "small-clip"
    shipped = model_directory("embedded:tiny_fill")
    assert shipped is not None
    shutil.copytree(shipped / "tokenizer", path)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = {"vocab_size": 2000, "max_position_embeddings": 24, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPConfig(
        text_config={**size, **words},
        vision_config={**size, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(path)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessorPil(**sizes).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layers of an aesthetic predictor, with a layer without weights between them."""
    torch.manual_seed(1)
    layers = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.Dropout(), torch.nn.Linear(8, 1))
    path = tmp_path_factory.mktemp("models") / "head.pth"
    torch.save(torch.nn.ModuleDict({"layers": layers}).state_dict(), path)
    return path


@pytest.fixture
def full(compose: Callable[..., RunConfig], clip: Path, head: Path) -> Callable[..., Any]:
    """`full("metrics.use=[clip_score]", ...)` composes a config with these overrides and the small networks."""

    def config(*overrides: str) -> Any:
        weights = (f"metrics.weights.clip={clip}", f"metrics.weights.aesthetic={head}", f"metrics.weights.hps={clip}")
        return compose("metrics=full", *weights, f"metrics.weights.pick_score={clip}", *overrides).metrics

    return config
