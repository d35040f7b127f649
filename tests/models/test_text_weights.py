"""Quantized T5 weights: half the bytes, nearly the same encodings, and cache entries of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fluxexp.config.optimization_catalog import NONE
from fluxexp.models.flux1.offloading import parts_of, weight_bytes
from fluxexp.models.text.text_weights import WeightFormat, WeightOnlyLinear
from tests.models.conftest import PROMPTS, Load


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize(("kind", "error"), [("fp8", 0.04), ("int8", 0.01)])
def test_each_row_keeps_its_values_within_the_error_of_its_format(kind: WeightFormat, error: float) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 48).requires_grad_(False)
    linear.weight[3] = 0
    linear.weight[5] *= 1e4  # rows have scales of their own
    stored = WeightOnlyLinear(linear, kind)
    found = stored(torch.eye(64)) - linear.bias
    assert torch.equal(found[:, 3], torch.zeros(64))
    rows = [row for row in range(48) if row != 3]
    difference = (found.T - linear.weight)[rows].norm(dim=1) / linear.weight[rows].norm(dim=1)
    assert difference.max() < error


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_encodings_stay_near_and_the_size_is_as_planned(load: Load, kind: WeightFormat) -> None:
    plain, asked = load("tiny_fill"), replace(NONE, text_encoder_weights=kind, text_cache=True)
    planned = parts_of(plain.pipeline, asked)
    model = load("tiny_fill", optimization=asked)
    assert model.applied_optimizations == [f"text_encoder_weights={kind}", "text_cache"]
    assert weight_bytes([model.pipeline.text_encoder, model.pipeline.text_encoder_2]) == planned.whole_text
    assert planned.whole_text < parts_of(plain.pipeline, NONE).whole_text
    with torch.inference_mode():
        ours = torch.stack([tokens for tokens, _ in model.encode_prompts(PROMPTS, None)])
        theirs = torch.stack([tokens for tokens, _ in plain.encode_prompts(PROMPTS, None)])
    assert 1e-5 < (ours - theirs).norm() / theirs.norm() < 0.1
    assert model.text_cache is not None
    whole = load("tiny_fill", optimization=replace(asked, text_encoder_weights=None))
    assert whole.text_cache is not None
    length = whole.prompt_encoder.num_tokens(None)
    assert model.text_cache.has(PROMPTS[0], length)
    assert not whole.text_cache.has(PROMPTS[0], length)
