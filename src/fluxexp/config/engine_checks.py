"""Checks the config group engine: whether the engine is installed, and whether it fits the rest of the command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from fluxexp.config.schema import RayEngineConfig, RunConfig
from fluxexp.errors import Problem
from fluxexp.rank_environment import RankEnvironment


def engine_can_start(config: RunConfig) -> Iterator[Problem]:
    """Check what is known before the engine starts."""
    engine, parallelism = config.engine, config.parallelism
    if not isinstance(engine, RayEngineConfig):
        return
    if find_spec("ray") is None:
        yield Problem("engine", "needs Ray, which is not installed", "ray", "pip install fluxexp[ray]")
    world_size = RankEnvironment.from_environment().world_size
    if world_size > 1:
        what = f"starts its own processes, but a launcher has started {world_size} of this command"
        yield Problem("engine", what, "ray", "start without `torchrun` or `accelerate launch`")
    if parallelism.expect_world_size is not None:
        what, hint = "counts the processes of a launcher, and engine=ray has none", "use engine.num_actors"
        yield Problem("parallelism.expect_world_size", what, parallelism.expect_world_size, hint)
    if parallelism.device == "cuda" and engine.gpus_per_actor == 0:
        what = "gives the actors no GPU, but parallelism.device=cuda"
        yield Problem("engine.gpus_per_actor", what, engine.gpus_per_actor, "use null")
    if parallelism.mode == "context" and parallelism.context_size is None:
        what = "must be a number with engine=ray, where all actors together are no replica"
        yield Problem("parallelism.context_size", what, "null", "use the number of GPUs that make an image together")
    try:
        parse_resources(engine.resources)
    except ValueError as error:
        what, hint = f"must be a list of NAME:AMOUNT: {error}", "write engine.resources=[my_gpu:1]"
        yield Problem("engine.resources", what, ", ".join(engine.resources), hint)
    try:
        read_runtime_env(engine.runtime_env)
    except (OSError, ValueError, yaml.YAMLError) as error:
        what = f"cannot be read: {error}"
        yield Problem("engine.runtime_env", what, engine.runtime_env, "name a YAML file with a mapping")


def parse_resources(resources: list[str]) -> dict[str, float]:
    """Amounts by name.

    Raises:
        ValueError: an item is not NAME:AMOUNT, or an amount is not a positive number.
    """
    amounts: dict[str, float] = {}
    for item in resources:
        name, _, amount = item.rpartition(":")
        if not name or not float(amount) > 0:
            raise ValueError(f"{item!r} is not")
        amounts[name] = float(amount)
    return amounts


def read_runtime_env(file: str | None) -> Mapping[str, Any] | None:
    """The content of `engine.runtime_env`.

    Raises:
        OSError, ValueError, yaml.YAMLError: it is not a YAML file with a mapping.
    """
    if file is None:
        return None
    content = yaml.safe_load(Path(file).expanduser().read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("it has no mapping")
    return content
