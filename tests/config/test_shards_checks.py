"""What is said of output.shards before anything is loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest

from fluxexp.address import Address
from fluxexp.config import RunConfig, check, fingerprint
from fluxexp.errors import ConfigError
from fluxexp.experiment import planner
from fluxexp.experiment.planner import Planner

Compose = Callable[..., RunConfig]


def test_shards_without_pyarrow_name_the_extra(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("fluxexp.config.checks.find_spec", lambda name: None if name == "pyarrow" else find(name))
    check(compose("model=fake"))
    with pytest.raises(ConfigError, match=r"(?s)output.shards.*pip install 'fluxexp\[parquet\]'"):
        check(compose("model=fake", "output.shards=true"))


def test_the_layout_does_not_change_the_fingerprint(compose: Compose) -> None:
    assert fingerprint(compose()) == fingerprint(compose("output.shards=true", "output.shard_mib=512"))


def test_shards_are_recommended_above_a_million_images(
    compose: Compose, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(planner, "_MANY_IMAGES", 10)
    plan = Planner(Address.of("outputs"), is_main=True)
    plan(compose("model=fake", "dataset.limit=10"))
    plan(compose("model=fake", "dataset.limit=11", "output.shards=true"))
    assert "output.shards=true" not in capsys.readouterr().err
    plan(compose("model=fake", "dataset.limit=11"))
    assert "has 11 images" in capsys.readouterr().err
