"""Scores by networks, on small ones with random weights: the wiring, not the judgement."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fluxexp.config import RunConfig
from fluxexp.config.model_paths import model_directory
from fluxexp.errors import ConfigError
from fluxexp.metrics.catalog import CATALOG
from fluxexp.metrics.full.clip import IQA_PROMPTS, Clip, read_head
from fluxexp.metrics.full.perceptual import LEAST, surroundings
from fluxexp.metrics.full.sets import set_scores
from fluxexp.metrics.making import make_metrics, require_metrics
from tests.metrics.test_basic import scene_case

Compose = Callable[..., RunConfig]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP with random weights, and the tokenizer of the embedded model."""
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


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    layers = torch.nn.ModuleDict(
        {"layers": torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.Dropout(), torch.nn.Linear(8, 1))}
    )
    path = tmp_path_factory.mktemp("models") / "head.pth"
    torch.save(layers.state_dict(), path)
    return path


@pytest.fixture
def full(compose: Compose, clip: Path, head: Path) -> Callable[..., Any]:
    def config(*overrides: str) -> Any:
        weights = (f"metrics.weights.clip={clip}", f"metrics.weights.aesthetic={head}", f"metrics.weights.hps={clip}")
        return compose("metrics=full", *weights, f"metrics.weights.pick_score={clip}", *overrides).metrics

    return config


OF_CLIP = "metrics.use=[clip_score,clip_iqa,aesthetic,pick_score,hps,cmmd]"


def test_clip_and_its_kin_score_by_their_formulas(full: Callable[..., Any], clip: Path, head: Path) -> None:
    require_metrics(full(OF_CLIP))
    made = make_metrics(full(OF_CLIP), CPU)
    case = scene_case()
    scores = {name: value for metric in made.metrics for name, value in metric.score(case).items()}
    network = Clip(clip, CPU)
    picture, text = network.of_picture(case.result), network.of_text(case.prompt)
    good, bad = (float(network.logit_scale * picture @ network.of_text(prompt)) for prompt in IQA_PROMPTS)
    cosine = float(picture @ text)
    assert float(torch.linalg.norm(picture)) == pytest.approx(1)
    assert scores["clip_score"] == pytest.approx(100 * max(cosine, 0), abs=1e-4)
    assert scores["pick_score"] == scores["hps"] == pytest.approx(100 * cosine, abs=1e-4)
    assert scores["clip_iqa"] == pytest.approx(np.exp(good) / (np.exp(good) + np.exp(bad)), rel=1e-4)
    assert scores["aesthetic"] == pytest.approx(float(read_head(head)(picture)), abs=1e-5)
    assert scores == {name: value for metric in made.metrics for name, value in metric.score(case).items()}
    assert set(scores) <= set(CATALOG)


def test_without_a_caption_nothing_is_said_of_its_fit(full: Callable[..., Any]) -> None:
    made = make_metrics(full("metrics.use=[clip_score,clip_iqa,pick_score]"), CPU)
    scores = {name: value for metric in made.metrics for name, value in metric.score(scene_case(prompt=" ")).items()}
    assert scores["clip_score"] is scores["pick_score"] is None
    assert scores["clip_iqa"] is not None


def test_texts_too_long_for_the_network_are_cut(clip: Path) -> None:
    network = Clip(clip, CPU)
    assert torch.isfinite(network.of_text("red star " * 400)).all()


def test_missing_weights_are_an_error_before_anything_is_made(full: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        require_metrics(full(OF_CLIP, "metrics.weights.clip=nobody/nothing", "metrics.weights.hps=null"))
    text = str(error.value)
    assert "metrics.weights.clip='nobody/nothing': cannot be had" in text
    assert "hf download nobody/nothing" in text
    assert "metrics.weights.hps='null': is not set" in text
    assert "metrics.skip_missing=true" in text
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        require_metrics(full(OF_CLIP, f"metrics.weights.clip={tmp_path}"))


def test_what_is_skipped_is_recorded(full: Callable[..., Any]) -> None:
    config = full("metrics.use=[clip_score,hps]", "metrics.weights.hps=null", "metrics.skip_missing=true")
    require_metrics(config)
    made = make_metrics(config, CPU)
    assert set(made.omitted) == {"hps"}
    assert "is not set" in made.omitted["hps"]
    assert any("clip_score" in metric.names for metric in made.metrics)


def test_cmmd_is_that_of_its_formula() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.normal(shift, 1, (number, 5)).astype(np.float32) for shift, number in ((0, 40), (3, 30)))

    def kernel(x: Any, y: Any) -> Any:
        return np.exp(-((x[:, None] - y[None]) ** 2).sum(-1) / (2 * 10**2)).mean()

    expected = 1000 * (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b))
    assert set_scores(["cmmd"], a, b)["cmmd"] == pytest.approx(expected, rel=1e-5)
    assert set_scores(["cmmd"], a, a)["cmmd"] == pytest.approx(0, abs=1e-6)
    assert set_scores(["cmmd"], a[:7], b) == {}, "too few"


def test_fid_and_kid_are_those_of_their_formulas() -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.normal(shift, 1, (60, 6)).astype(np.float32) for shift in (0, 0.5))
    covariances = [np.cov(x, rowvar=False) for x in (a, b)]
    roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).astype(complex)).real.sum()
    frechet = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1]) - 2 * roots

    def kernel(x: Any, y: Any) -> Any:
        return (x @ y.T / 6 + 1) ** 3

    within = sum((kernel(x, x).sum() - np.trace(kernel(x, x))) / (60 * 59) for x in (a, b))
    scores = set_scores(["fid", "kid"], a, b)
    assert scores["fid"] == pytest.approx(frechet, rel=1e-4)
    assert scores["kid"] == pytest.approx(1000 * (within - 2 * kernel(a, b).mean()), rel=1e-3)
    assert scores == set_scores(["fid", "kid"], a, b)


def test_small_holes_are_looked_at_with_what_is_around_them() -> None:
    hole = np.zeros((100, 50), bool)
    hole[95:98, 10:12] = True
    rows, columns = surroundings(hole)
    assert (rows.stop - rows.start, rows.stop) == (LEAST, 100)
    assert (columns.start, columns.stop) == (0, 50), "all there is"
    assert hole[rows, columns].sum() == hole.sum()


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """State dicts of torchvision's networks with random weights."""
    models = pytest.importorskip("torchvision.models", reason="needs torchvision")
    paths = {}
    for name in ("alexnet", "vgg16"):
        torch.manual_seed(0)
        paths[name] = tmp_path_factory.mktemp("backbones") / f"{name}.pth"
        torch.save(getattr(models, name)().state_dict(), paths[name])
    return paths


def test_perceptual_distances_grow_with_the_difference(full: Callable[..., Any], backbones: dict[str, Path]) -> None:
    files = [f"metrics.weights.{name}={path}" for name, path in backbones.items()]
    made = make_metrics(full("metrics.use=[lpips,dists]", *files), CPU)
    case = scene_case()
    assert case.truth is not None
    noise = np.random.default_rng(0).integers(0, 256, case.truth.shape, np.uint8)
    found = []
    for share in (0.0, 0.2, 0.6):
        result = (case.truth * (1 - share) + noise * share).astype(np.uint8)
        changed = scene_case(result=result)
        scores = {name: value for metric in made.metrics for name, value in metric.score(changed).items()}
        pairs = [metric.measure(changed, case.truth) for metric in made.pair_metrics]
        assert pairs[-1]["lpips_to_reference"] == pytest.approx(scores["lpips"])
        found.append((scores["lpips"] or 0.0, scores["dists"] or 0.0))
    for distances in zip(*found, strict=True):
        assert distances[0] == pytest.approx(0, abs=1e-5)
        assert distances[0] < distances[1] < distances[2]


def test_a_run_is_scored_by_networks_and_its_sets(program: Any, clip: Path, head: Path) -> None:
    """The whole way: launched, features kept, distances between sets in the summary, nothing made twice."""
    weights = (f"metrics.weights.clip={clip}", f"metrics.weights.aesthetic={head}")
    use = ("metrics=full", "metrics.use=[clip_score,aesthetic,cmmd,hps]", "metrics.skip_missing=true", *weights)
    data = ("model=fake", "dataset.height=32", "dataset.width=32", "report=off", "tracking=disabled")
    run = program.run(*data, "dataset.limit=9", *use, processes=2)
    assert run.returncode == 0, run.stderr
    scores = run.summary["scores"]
    assert scores["clip_score"]["num"] == scores["cmmd"]["num"] == 9
    assert scores["cmmd"]["mean"] > 0
    assert set(run.summary["scoring"]["omitted"]) == {"hps"}
    features = {file.name: file.stat().st_mtime_ns for file in run.directory.glob("scores/features/*/*.npz")}
    assert len(features) == 9
    again = program.run(*data, "dataset.limit=10", *use)
    assert json.loads((again.directory / "summary.json").read_text())["scoring"]["num_scored"] == 1
    assert again.summary["scores"]["cmmd"]["num"] == 10
    for name, changed in features.items():
        (file,) = again.directory.glob(f"scores/features/*/{name}")
        assert file.stat().st_mtime_ns == changed
