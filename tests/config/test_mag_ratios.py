"""Measured ratios become part of the config, and so of the fingerprint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fluxexp.config import RunConfig, fingerprint
from fluxexp.config.mag_ratios import ratios_file, with_measured_ratios
from fluxexp.config.optimization_kinds import is_settled
from fluxexp.config.schema import MagCacheConfig
from fluxexp.errors import ConfigError
from tests.conftest import Compose

MAGCACHE = "optimization/step_cache=magcache"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def keep(config: RunConfig, text: str) -> None:
    file = ratios_file(config)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def ratios(config: RunConfig) -> object:
    cache = with_measured_ratios(config).optimization.step_cache
    assert isinstance(cache, MagCacheConfig)
    return cache.ratios


def test_without_measured_ratios_the_error_says_what_to_do(compose: Compose) -> None:
    config = compose(MAGCACHE)
    assert not is_settled(config.optimization)
    with pytest.raises(ConfigError, match=r"(?s)optimization\.step_cache\.ratios='measured'.*fluxexp\.calibrate"):
        with_measured_ratios(config)


def test_the_ratios_of_the_nearest_number_of_steps_are_used(compose: Compose) -> None:
    for steps in (4, 8, 16):
        keep(compose(f"sampling.steps={steps}"), json.dumps([float(steps)]))
    assert [ratios(compose(MAGCACHE, f"sampling.steps={steps}")) for steps in (1, 8, 11, 12, 50)] == [
        [4.0],
        [8.0],
        [8.0],
        [16.0],
        [16.0],
    ]


def test_each_model_and_scheduler_has_its_own_ratios(compose: Compose) -> None:
    keep(compose(), "[1.0]")
    assert ratios(compose(MAGCACHE, "sampling.guidance=3")) == [1.0]
    for other in ("model.dtype=bfloat16", "scheduler=unipc", "scheduler.shift=2", "model=tiny_dev"):
        with pytest.raises(ConfigError, match="have not been measured"):
            ratios(compose(MAGCACHE, other))


def test_measured_ratios_are_part_of_the_fingerprint(compose: Compose) -> None:
    names = []
    for text in ("[1.0]", "[0.9]"):
        keep(compose(), text)
        names.append(fingerprint(with_measured_ratios(compose(MAGCACHE))))
    assert names[0] != names[1]


def test_other_caches_and_given_ratios_do_not_change(compose: Compose) -> None:
    for config in (compose(), compose("optimization/step_cache=first_block")):
        assert with_measured_ratios(config) is config
    assert ratios(compose(MAGCACHE, "optimization.step_cache.ratios=[1.0,0.9]")) == [1.0, 0.9]
    assert ratios(compose(MAGCACHE, "optimization.step_cache.ratios=flux_dev")) == "flux_dev"


@pytest.mark.parametrize("text", ["", "{", "3", '["x"]'])
def test_a_damaged_file_is_named(compose: Compose, text: str) -> None:
    keep(compose(), text)
    with pytest.raises(ConfigError, match="measure them again"):
        with_measured_ratios(compose(MAGCACHE))
