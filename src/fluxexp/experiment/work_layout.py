"""How the ranks are spread over the tasks of runs that share a model: each by itself, or several for an image.

Rank 0 decides, and announces it with the runs: the others cannot see all that it goes by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

from fluxexp.config import RunConfig
from fluxexp.config.architecture import Architecture
from fluxexp.config.schema import FluxModelConfig
from fluxexp.experiment.pool import full_batch, ranks_to_use, usual_tokens
from fluxexp.parallel.step_cost import step_s
from fluxexp.parallel.topology import Topology
from fluxexp.telemetry.nvml import nvlink_peers

_WORTHWHILE = 0.9
"""Of the time that it takes with fewer ranks an image. What conditions and decodes is one rank of a replica, which the
formula leaves out."""


@dataclass(frozen=True, slots=True)
class WorkLayout:
    """`num_replicas` share the tasks; each is `context_size` neighbouring ranks, which make images together."""

    num_replicas: int
    context_size: int
    why: str
    num_last: int = 0
    """Tasks that are left to the end: too few for all ranks, each of which worked by itself before."""
    last_size: int = 1
    """Ranks that make those together."""

    @property
    def num_ranks(self) -> int:
        """Ranks that work."""
        return self.num_replicas * self.context_size


def choose_work_layout(
    configs: Sequence[RunConfig], num_tasks: int, topology: Topology, *, is_alone: bool, num_linked: int | None = None
) -> WorkLayout:
    """How to spread the ranks.

    Args:
        configs: of the runs, which share a model and how they are to be spread.
        num_tasks: images to make, of all runs.
        topology: of rank 0.
        is_alone: whether no other model is worked on at the same time.
        num_linked: GPUs that are linked well enough to make images together, this one included; looked up if None.
    """
    parallelism, world_size = configs[0].parallelism, topology.world_size
    is_cpu = topology.device.type == "cpu"
    if parallelism.mode == "context" and world_size > 1:
        size = parallelism.context_size or world_size
        return WorkLayout(world_size // size, size, f"{num_tasks} images, {_together(size)}")
    full = max(full_batch(config, is_cpu) for config in configs)
    number, why = ranks_to_use(parallelism.mode, num_tasks, full, world_size)
    apart = WorkLayout(number, 1, why)
    if parallelism.mode != "auto" or world_size == 1 or is_cpu or not is_alone or not _allow_context(configs):
        return apart
    num_last = num_tasks % world_size if full == 1 else 0
    if number == world_size and not num_last:
        return apart
    if num_linked is None:
        num_linked = 1 + nvlink_peers(topology.device_uuid)
    model = configs[0].model
    assert isinstance(model, FluxModelConfig)
    architecture, tokens = Architecture.of(model), max(map(usual_tokens, configs))
    batches = num_last if number == world_size else ceil(num_tasks / full)
    on_host = topology.local_world_size or world_size
    best, least_s = 1, step_s(architecture, tokens, 1)
    for size in _sizes(parallelism.context_size, world_size, on_host, num_linked, architecture.heads):
        seconds = ceil(batches / (world_size // size)) * step_s(architecture, tokens, size)
        if seconds < _WORTHWHILE * least_s:
            best, least_s = size, seconds
    if best == 1:
        return apart
    if number == world_size:
        return replace(apart, why=f"{why}, the last {num_last} {_together(best)}", num_last=num_last, last_size=best)
    words = f"{num_tasks} images, {_together(best)} (parallelism=data lets each work by itself)"
    return WorkLayout(world_size // best, best, words)


def _sizes(wanted: int | None, world_size: int, on_host: int, num_linked: int, heads: int) -> list[int]:
    """Ranks that can make an image together: on one machine, linked, with a head each."""
    most = min(on_host, num_linked, heads)
    possible = (size for size in range(2, most + 1) if world_size % size == 0 and on_host % size == 0)
    return [size for size in possible if wanted in (None, size)]


def _allow_context(configs: Sequence[RunConfig]) -> bool:
    """Whether what is asked for of the model goes with it: `auto` leaves out what `context` refuses."""
    return all(
        isinstance(config.model, FluxModelConfig)
        and config.optimization.hoist_constants
        and not config.optimization.fp8_attention
        and not config.optimization.compile_blocks
        for config in configs
    )


def _together(size: int) -> str:
    return f"each by {size} ranks together"
