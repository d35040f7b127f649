"""Schema of the config group engine: what starts the processes that make images, and gives them their tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from fluxexp.config.rules import Above, Range
from fluxexp.config.schema_types import Count


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalEngineConfig:
    """The processes that a launcher started: `accelerate launch`, `torchrun`, or this process alone."""

    kind: Literal["local"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RayEngineConfig:
    """Actors of Ray, on any number of machines. This process plans, hands out tasks and finalizes (docs/ray.md)."""

    kind: Literal["ray"]
    address: str | None
    """Of a Ray cluster: `auto` (the one that runs on this machine), `HOST:PORT` or `ray://HOST:PORT`. null: Ray is
    started on this machine."""
    num_actors: Count | None
    """Number of actors; with parallelism=context, of groups of actors. Those for which the cluster has no resources
    wait for them, so a cluster with an autoscaler grows. null: as many as the resources of the cluster allow; more if
    it grows."""
    gpus_per_actor: Annotated[float, Range(0)] | None
    """GPUs of one actor. null: 1; 0 if the cluster has no GPUs, or with parallelism.device=cpu."""
    cpus_per_actor: Annotated[float, Range(0)]
    """CPUs that Ray reserves for one actor."""
    resources: list[str]
    """Further resources of one actor, each as NAME:AMOUNT: custom resources of Ray, or `accelerator_type:A100:0.001`.
    """
    chunk_s: Annotated[float, Above(0)]
    """Seconds of work that an actor is given at once. Chunks are smaller at the end, and at the start of an actor."""
    max_restarts: Annotated[int, Range(0)]
    """How often Ray restarts an actor that has died. The tasks of the actor go to others in any case."""
    runtime_env: str | None
    """A YAML file with the runtime environment of the actors, as Ray documents it. null: none."""


EngineConfig = LocalEngineConfig | RayEngineConfig
