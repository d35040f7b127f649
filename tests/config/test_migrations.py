"""Reading configs of other versions of fluxexp."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
from typing import Any

import pytest

from fluxexp.config import RunConfig, fingerprint, migrations
from fluxexp.config.migrations import CONFIG_VERSION, VERSIONS, Version, migrate, read_config
from fluxexp.errors import ConfigError

Compose = Callable[..., RunConfig]


@pytest.fixture
def values(compose: Compose) -> dict[str, Any]:
    return asdict(compose())


def without(values: dict[str, Any], key: str) -> dict[str, Any]:
    changed = deepcopy(values)
    *groups, name = key.split(".")
    group = changed
    for inner in groups:
        group = group[inner]
    del group[name]
    return changed


def test_a_config_of_this_version_is_read_unchanged(compose: Compose, values: dict[str, Any]) -> None:
    assert read_config(migrate({"config_version": CONFIG_VERSION, **values})) == (compose(), [])


@pytest.mark.parametrize(
    ("key", "default"),
    [
        ("sampling.strength", 1.0),
        ("optimization.fused_kernels", False),
        ("optimization.step_cache", None),
        ("parallelism.context_kind", "ulysses"),
        ("cost", {"usd_per_gpu_hour": None}),
        ("debug", {"plan": False}),
        ("metrics", {"name": "none"}),
        ("objective", None),
    ],
)
def test_a_missing_key_has_its_default(values: dict[str, Any], key: str, default: Any) -> None:
    config, notes = read_config(migrate(without(values, key)))
    found: Any = asdict(config)
    for name in key.split("."):
        found = found[name]
    assert found == default
    assert notes == []


def test_a_missing_key_without_a_default_is_an_error(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"sampling\.steps: is missing"):
        read_config(migrate(without(values, "sampling.steps")))


def test_unknown_keys_are_named_and_ignored(compose: Compose, values: dict[str, Any]) -> None:
    values["sampling"]["from_the_future"] = 1
    values["future_group"] = {"a": 1}
    config, notes = read_config(migrate({"config_version": 99, **values}))
    assert config == compose()
    assert notes == [
        "config.yaml has keys that this version of fluxexp ignores: future_group, sampling.from_the_future"
    ]


def test_a_value_out_of_range_is_an_error(values: dict[str, Any]) -> None:
    values["sampling"]["steps"] = "many"
    with pytest.raises(ConfigError, match="steps"):
        read_config(migrate(values))


def test_keys_are_renamed_and_removed_by_version(
    compose: Compose, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    later = {2: Version(renamed={"sampling.num_steps": "sampling.steps"}, removed=["sampling.legacy"])}
    monkeypatch.setattr(migrations, "VERSIONS", {**VERSIONS, **later})
    older = deepcopy(values)
    older["sampling"]["num_steps"] = older["sampling"].pop("steps")
    older["sampling"]["legacy"] = 3
    assert read_config(migrate({"config_version": 1, **older})) == (compose(), [])
    with pytest.raises(ConfigError, match="steps"):  # version 2 has no such key to rename
        read_config(migrate({"config_version": 2, **older}))


def test_a_new_key_with_its_default_keeps_the_fingerprint(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, changed = compose(), compose("sampling.strength=0.5")
    before = fingerprint(plain), fingerprint(changed)
    # Pretend that `strength` is new in version 2, so that fingerprints of version 1 do not contain it.
    monkeypatch.setattr(migrations, "VERSIONS", {**VERSIONS, 2: Version(added={"sampling.strength": 1.0})})
    payload = migrations.without_new_defaults("sampling", asdict(plain.sampling))
    assert "strength" not in payload
    assert fingerprint(plain) != before[0]
    assert fingerprint(changed) == before[1]
