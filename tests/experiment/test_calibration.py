"""Calibration measures the ratios that MagCache needs, and the next run finds them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fluxexp.config.mag_ratios import ratios_file, with_measured_ratios
from fluxexp.errors import ConfigError
from fluxexp.experiment.calibration import calibrate
from fluxexp.models.loading.model_loader import load_model
from tests.conftest import Compose

TINY = ("dataset.height=64", "dataset.width=64", "sampling.steps=6")


def test_a_calibrated_model_can_use_magcache(compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = compose(*TINY, "optimization/step_cache=magcache")
    file = calibrate(config, num_samples=2)
    ratios = json.loads(file.read_text())
    assert file == ratios_file(config)
    assert len(ratios) == 6
    assert ratios[0] == 1.0
    assert all(0.2 < ratio < 5 for ratio in ratios)
    ready = with_measured_ratios(config)
    model = load_model(ready, torch.device("cpu"), 0)
    applied = model.applied_optimizations
    assert applied[-1] == "step_cache=magcache"
    plain = load_model(compose(*TINY, "optimization.hoist_constants=true"), torch.device("cpu"), 0)
    assert plain is model, "the loaded model serves with and without a cache"
    assert plain.applied_optimizations == applied[:-1]


@pytest.mark.parametrize(
    ("override", "words"), [("model=fake", "no network to measure"), ("sampling.strength=0.5", "skips the first steps")]
)
def test_configs_that_cannot_be_calibrated(compose: Compose, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        calibrate(compose(*TINY, override), num_samples=1)
