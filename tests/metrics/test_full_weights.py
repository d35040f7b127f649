"""Missing weights are reported before a run starts, and the message says what to do."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from fluxexp.config.schema import NetworkMetric
from fluxexp.errors import ConfigError
from fluxexp.metrics.catalog import CATALOG, QUALITY_METRICS
from fluxexp.metrics.full.metric_weights import REQUIRED_WEIGHTS, find_weights, weights_identity
from fluxexp.metrics.metric_set import make_metrics, require_metrics
from tests.program import Program

CPU = torch.device("cpu")
OF_CLIP = "metrics.use=[clip_score,clip_iqa,aesthetic,pick_score,hps,cmmd]"
Full = Callable[..., Any]


def test_every_network_metric_is_in_the_catalog_and_declares_its_weights() -> None:
    assert set(REQUIRED_WEIGHTS) == set(get_args(NetworkMetric)) <= set(CATALOG)
    assert {"lpips_to_reference", *QUALITY_METRICS} <= set(CATALOG)


def test_existing_weights_are_found(full: Full, clip: Path, head: Path) -> None:
    require_metrics(full(OF_CLIP))
    found = find_weights(full(OF_CLIP))
    assert found.weights == {"clip": clip, "aesthetic": head, "pick_score": clip, "hps": clip}
    assert not found.missing


def test_all_missing_weights_are_reported_at_once(full: Full) -> None:
    with pytest.raises(ConfigError) as error:
        require_metrics(full(OF_CLIP, "metrics.weights.clip=nobody/nothing", "metrics.weights.hps=null"))
    text = str(error.value)
    assert "metrics.weights.clip='nobody/nothing': cannot be downloaded" in text
    assert "hf download nobody/nothing" in text
    assert "metrics.weights.hps='null': is not set" in text
    assert "metrics.skip_missing=true" in text


def test_a_hub_is_asked_only_once_per_process(full: Full, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(repository: str, **_: object) -> str:
        asked.append(repository)
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    for _ in range(3):
        missing = find_weights(full(OF_CLIP, "metrics.weights.clip=nobody/once")).missing
        assert "ConnectionError: no network" in missing["clip_score"].reason
    assert asked == ["nobody/once"]


def test_downloaded_weights_are_checked(full: Full, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(clip))
    assert find_weights(full(OF_CLIP, "metrics.weights.clip=somebody/something")).weights["clip"] == clip


@pytest.mark.parametrize("spec", ["/nowhere/clip", "./clip", "clip"])
def test_a_path_is_not_requested_from_a_hub(full: Full, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("was asked"))
    problem = find_weights(full(OF_CLIP, f"metrics.weights.clip={spec}")).missing["clip_score"]
    assert str(problem).startswith(f"metrics.weights.clip='{spec}': is not a directory")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("config.json", "does not contain config.json"),
        ("model.safetensors", "cannot be loaded: clip/ has no weights in safetensors"),
        ("preprocessor_config.json", "does not contain preprocessor_config.json"),
        ("tokenizer.json", "does not contain a tokenizer"),
    ],
)
def test_an_incomplete_model_directory_is_missing(
    full: Full, clip: Path, tmp_path: Path, name: str, reason: str
) -> None:
    shutil.copytree(clip, tmp_path / "clip")
    (tmp_path / "clip" / name).unlink()
    missing = find_weights(full(OF_CLIP, f"metrics.weights.clip={tmp_path / 'clip'}")).missing
    assert missing["clip_score"].reason == missing["cmmd"].reason == reason


def test_a_model_of_another_type_is_missing(full: Full, clip: Path, tmp_path: Path) -> None:
    shutil.copytree(clip, tmp_path / "clip")
    config = json.loads((clip / "config.json").read_text())
    (tmp_path / "clip" / "config.json").write_text(json.dumps({**config, "model_type": "siglip"}))
    missing = find_weights(full(OF_CLIP, f"metrics.weights.clip={tmp_path / 'clip'}")).missing
    assert missing["clip_score"].reason == "is a model of type siglip, not clip"


def saved(path: Path, *names: str) -> Path:
    torch.save({name: torch.zeros(1) for name in names}, path)
    return path


@pytest.mark.parametrize(
    ("key", "metric", "names", "reason"),
    [
        ("alexnet", "lpips", ("features.3.weight", "features.8.bias"), None),
        ("alexnet", "lpips", ("features.2.weight", "features.28.bias"), "does not contain features.3.weight"),
        ("vgg16", "dists", ("features.2.weight", "features.28.bias"), None),
        ("inception", "fid", ("Conv2d_1a_3x3.conv.weight", "Mixed_7c.branch_pool.conv.weight"), None),
        ("inception", "fid", ("Conv2d_1a_3x3.conv.weight", "AuxLogits.fc.weight"), "is torchvision's Inception v3"),
        ("aesthetic", "aesthetic", ("features.0.weight",), "is a whole network"),
    ],
)
def test_a_file_with_weights_of_another_network_is_missing(
    full: Full, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str, metric: str, names: Any, reason: str | None
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    file = saved(tmp_path / "weights.pth", *names)
    missing = find_weights(full(f"metrics.use=[{metric}]", f"metrics.weights.{key}={file}")).missing
    assert (not missing) if reason is None else missing[metric].reason.startswith(reason)


def test_a_missing_library_is_named(full: Full, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    missing = find_weights(full("metrics.use=[lpips,fid,clip_score]")).missing
    assert str(missing["lpips"]).startswith("metrics.use='lpips': needs torchvision, which is not installed")
    assert "pip install 'fluxexp[metrics]'" in str(missing["fid"])
    assert "clip_score" not in missing


def test_skipped_metrics_are_recorded(full: Full) -> None:
    config = full("metrics.use=[clip_score,hps]", "metrics.weights.hps=null", "metrics.skip_missing=true")
    require_metrics(config)
    made = make_metrics(config, CPU)
    assert set(made.omitted) == {"hps"}
    assert "is not set" in made.omitted["hps"]
    assert any("clip_score" in metric.names for metric in made.metrics)


def test_weights_are_identified_by_their_content(clip: Path, head: Path, tmp_path: Path) -> None:
    shutil.copytree(clip, tmp_path / "other-name")
    assert weights_identity(tmp_path / "other-name") == weights_identity(clip) != weights_identity(head)


def test_paths_are_checked_without_torch(clip: Path, head: Path) -> None:
    """So a mistake is reported quickly."""
    program = (
        "import sys\n"
        "from fluxexp.config.schema import FullMetricsConfig, MetricWeightsConfig\n"
        "from fluxexp.metrics.metric_set import require_metrics\n"
        "names = dict.fromkeys(['alexnet', 'vgg16', 'inception', 'pick_score', 'hps'])\n"
        f"weights = MetricWeightsConfig(clip={str(clip)!r}, aesthetic={str(head)!r}, **names)\n"
        "require_metrics(FullMetricsConfig(name='full', quality=None, tolerance=None, skip_missing=False,"
        " weights=weights,"
        " use=['clip_score', 'aesthetic', 'cmmd']))\n"
        "assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.slow
def test_a_run_has_network_scores_and_set_distances(program: Program, clip: Path, head: Path) -> None:
    """End to end: features are stored, the summary has set distances, and nothing is computed twice."""
    files = (f"metrics.weights.clip={clip}", f"metrics.weights.aesthetic={head}")
    use = ("metrics=full", "metrics.use=[clip_score,aesthetic,cmmd,hps]", "metrics.skip_missing=true", *files)
    data = ("model=fake", "dataset.height=32", "dataset.width=32", "report=off", "tracking=disabled")
    run = program.run(*data, "dataset.limit=4", *use)
    assert run.returncode == 0, run.stderr
    assert run.summary["scores"]["clip_score"]["num"] == 4
    assert set(run.summary["scoring"]["omitted"]) == {"hps", "cmmd"}
    assert "4 results and 4 ground truths" in run.summary["scoring"]["omitted"]["cmmd"]
    features = {file.name: file.stat().st_mtime_ns for file in run.directory.glob("scores/features/*/*.npz")}
    assert len(features) == 4
    again = program.run(*data, "dataset.limit=16", *use)
    summary = json.loads((again.directory / "summary.json").read_text())
    assert summary["scoring"]["num_scored"] == 12
    assert set(summary["scoring"]["omitted"]) == {"hps"}
    assert summary["scores"]["clip_score"]["num"] == summary["scores"]["cmmd"]["num"] == 16
    assert summary["scores"]["cmmd"]["mean"] > 0
    for name, changed in features.items():
        (file,) = again.directory.glob(f"scores/features/*/{name}")
        assert file.stat().st_mtime_ns == changed
