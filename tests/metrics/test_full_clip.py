"""Scores by CLIP networks. A small network with random weights tests the code, not the quality of scores."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fluxexp.errors import ConfigError
from fluxexp.metrics.catalog import CATALOG
from fluxexp.metrics.full.clip import IQA_PROMPTS, Clip, read_head
from fluxexp.metrics.metric_set import MetricSet, make_metrics
from tests.metrics.test_basic import scene_case

CPU = torch.device("cpu")
OF_CLIP = ("clip_score", "clip_iqa", "aesthetic", "pick_score", "hps")
Full = Callable[..., Any]


def all_scores(made: MetricSet, case: Any) -> dict[str, float | None]:
    return {name: value for metric in made.metrics for name, value in metric.score(case).items()}


def library_embeddings(path: Path, picture: np.ndarray, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of image and text from one forward pass of the library."""
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

    tokens = AutoTokenizer.from_pretrained(path)(text, return_tensors="pt")
    pixels = CLIPImageProcessorPil.from_pretrained(path)(images=Image.fromarray(picture), return_tensors="pt")
    with torch.no_grad():
        found = CLIPModel.from_pretrained(path)(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], **pixels
        )
    return found.image_embeds[0], found.text_embeds[0]


def test_embeddings_equal_those_of_the_library(clip: Path) -> None:
    case = scene_case()
    picture, text = library_embeddings(clip, case.result, "a red star")
    network = Clip(clip, CPU)
    torch.testing.assert_close(network.of_image(case.result), picture)
    torch.testing.assert_close(network.of_text("a red star"), text)
    assert float(picture.norm()) == pytest.approx(1)


def test_scores_equal_their_formulas(full: Full, clip: Path, head: Path) -> None:
    made = make_metrics(full(f"metrics.use=[{','.join(OF_CLIP)}]"), CPU)
    case = scene_case()
    scores = all_scores(made, case)
    picture, text = library_embeddings(clip, case.result, case.prompt)
    cosine = float(picture @ text)
    scale = Clip(clip, CPU).logit_scale
    good, bad = (scale * float(picture @ library_embeddings(clip, case.result, words)[1]) for words in IQA_PROMPTS)
    assert scores["clip_score"] == pytest.approx(100 * max(cosine, 0), abs=1e-3)
    assert scores["pick_score"] == pytest.approx(100 * cosine, abs=1e-3)
    assert scores["hps"] == scores["pick_score"]
    assert scores["clip_iqa"] == pytest.approx(np.exp(good) / (np.exp(good) + np.exp(bad)), rel=1e-3)
    assert scores["aesthetic"] == pytest.approx(float(read_head(head)(picture)), abs=1e-4)
    assert scores == all_scores(made, case)
    assert set(scores) <= set(CATALOG)


def test_without_a_caption_its_scores_are_none(full: Full) -> None:
    scores = all_scores(make_metrics(full("metrics.use=[clip_score,clip_iqa,pick_score]"), CPU), scene_case(prompt=" "))
    assert scores["clip_score"] is scores["pick_score"] is None
    assert scores["clip_iqa"] is not None


def test_texts_that_are_too_long_are_truncated(clip: Path) -> None:
    network = Clip(clip, CPU)
    assert torch.isfinite(network.of_text("red star " * 400)).all()


def test_all_metrics_share_one_embedding_per_image(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    network = Clip(clip, CPU)

    def compute(pixels: Any) -> torch.Tensor:
        calls.append(pixels)
        return network._of_image(pixels)

    monkeypatch.setattr(network.of_image, "_compute", compute)
    first, second = scene_case(0).result, scene_case(1).result
    same = network.of_image(first)
    assert torch.equal(network.of_image(first.copy()), same)
    assert not torch.equal(network.of_image(second), same)
    assert len(calls) == 2


def test_other_weights_change_only_the_identity_of_their_metric(full: Full, head: Path, tmp_path: Path) -> None:
    state = torch.load(head)
    state["layers.2.bias"] += 1
    torch.save(state, tmp_path / head.name)
    use = "metrics.use=[clip_score,aesthetic]"
    one = make_metrics(full(use), CPU)
    two = make_metrics(full(use, f"metrics.weights.aesthetic={tmp_path / head.name}"), CPU)
    identities = [{m.names[0]: m.identity for m in made.metrics} for made in (one, two)]
    assert identities[0]["clip_score"] == identities[1]["clip_score"] != ""
    assert identities[0]["aesthetic"] != identities[1]["aesthetic"], "files with the same name but other content"


def test_an_aesthetic_predictor_for_another_clip_is_an_error(full: Full, tmp_path: Path) -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(768, 1))
    torch.save(torch.nn.ModuleDict({"layers": layers}).state_dict(), tmp_path / "head.pth")
    config = full("metrics.use=[aesthetic]", f"metrics.weights.aesthetic={tmp_path / 'head.pth'}")
    with pytest.raises(ConfigError, match="needs embeddings of 768 values, but those of clip have 16"):
        make_metrics(config, CPU)


def test_a_clip_with_missing_tensors_is_refused(clip: Path, tmp_path: Path) -> None:
    """The library would give them random values, and all scores with them."""
    damaged = shutil.copytree(clip, tmp_path / "clip")
    tensors = load_file(damaged / "model.safetensors")
    del tensors["text_model.final_layer_norm.weight"]
    save_file(tensors, damaged / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"without 1 of its tensors \(text_model.final_layer_norm.weight\)"):
        Clip(damaged, "cpu")
