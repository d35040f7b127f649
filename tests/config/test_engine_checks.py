"""What of engine=ray is refused before anything starts."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from fluxexp.config import RunConfig, check
from fluxexp.config.engine_checks import parse_resources, read_runtime_env
from fluxexp.errors import ConfigError

Compose = Callable[..., RunConfig]


def refusal(config: RunConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        check(config)
    return str(caught.value)


@pytest.fixture
def with_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxexp.config.engine_checks.find_spec", lambda _: object())


def test_without_ray_the_extra_is_named(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("fluxexp.config.engine_checks.find_spec", lambda name: None if name == "ray" else find(name))
    assert "pip install fluxexp[ray]" in refusal(compose("model=fake", "engine=ray"))
    check(compose("model=fake"))


@pytest.mark.usefixtures("with_ray")
@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("parallelism.expect_world_size=2", "engine.num_actors"),
        ("parallelism=context", "parallelism.context_size"),
        ("engine.resources=[gpu]", "NAME:AMOUNT"),
        ("engine.resources=[gpu:-1]", "NAME:AMOUNT"),
        ("engine.runtime_env=missing.yaml", "engine.runtime_env"),
    ],
)
def test_what_does_not_fit_is_refused(compose: Compose, override: str, words: str) -> None:
    assert words in refusal(compose("model=fake", "engine=ray", override))


@pytest.mark.usefixtures("with_ray")
def test_a_launcher_and_ray_do_not_go_together(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    config = compose("model=fake", "engine=ray")
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    assert "without `torchrun` or `accelerate launch`" in refusal(config)


def test_resources_and_the_runtime_environment(tmp_path: Path) -> None:
    assert parse_resources(["accelerator_type:A100:0.001", "my_gpu:2"]) == {
        "accelerator_type:A100": 0.001,
        "my_gpu": 2.0,
    }
    file = tmp_path / "env.yaml"
    file.write_text("env_vars: {A: b}\n")
    assert read_runtime_env(str(file)) == {"env_vars": {"A": "b"}}
    file.write_text("[]\n")
    with pytest.raises(ValueError, match="no mapping"):
        read_runtime_env(str(file))
