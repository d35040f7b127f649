"""The work layout: whether each rank makes images alone, or several ranks form a replica and make an image together.

Rank 0 chooses the layout and announces it with the session plan, because only rank 0 knows all that the choice needs.
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
"""A larger replica must need less than this part of the time of a smaller one. The formula leaves out conditioning
and decoding, which only the leader of a replica does."""


@dataclass(frozen=True, slots=True)
class WorkLayout:
    """`num_replicas` replicas share the tasks. Each consists of `context_size` consecutive ranks."""

    num_replicas: int
    context_size: int
    why: str
    num_last: int = 0
    """Tasks that are made last, by several ranks each, because fewer tasks than ranks remain. Until then each rank
    works alone."""
    last_size: int = 1
    """Number of ranks that make each of the last tasks together."""

    @property
    def num_ranks(self) -> int:
        """Ranks that get work."""
        return self.num_replicas * self.context_size


def choose_work_layout(
    configs: Sequence[RunConfig], num_tasks: int, topology: Topology, *, is_alone: bool, num_linked: int | None = None
) -> WorkLayout:
    """Choose how the ranks work.

    Args:
        configs: of the runs, which share a model and the parallelism config.
        num_tasks: images to make, of all runs.
        topology: of rank 0.
        is_alone: whether the session has no other model, so that every rank is free for this one.
        num_linked: GPUs that NVLink connects, this one included; asked from NVML if None.
    """
    parallelism, world_size = configs[0].parallelism, topology.world_size
    is_cpu = topology.device.type == "cpu"
    if parallelism.mode == "context" and world_size > 1:
        size = parallelism.context_size or world_size
        return WorkLayout(world_size // size, size, f"{num_tasks} images, {_together(size)}")
    full = max(full_batch(config, is_cpu) for config in configs)
    number, why = ranks_to_use(parallelism.mode, num_tasks, full, world_size)
    separate = WorkLayout(number, 1, why)
    if parallelism.mode != "auto" or world_size == 1:
        return separate
    wanted = parallelism.context_size
    num_last = num_tasks % world_size if full == 1 else 0
    if is_cpu:
        return _without(wanted, separate, "the ranks have no GPUs; parallelism=context uses it on CPUs, too")
    if not is_alone:
        return _without(wanted, separate, "other ranks work on another model")
    if not _allow_context(configs):
        return _without(wanted, separate, "the model or its optimizations do not allow it (docs/context.md)")
    if number == world_size and not num_last:
        return _without(wanted, separate, "every rank has images of its own")
    if num_linked is None:
        num_linked = 1 + nvlink_peers(topology.device_uuid)
    batches = num_last if number == world_size else ceil(num_tasks / full)
    best = _fastest_size(configs, batches, topology, num_linked)
    if isinstance(best, str):
        return _without(wanted, separate, best)
    if number == world_size:
        return replace(separate, why=f"{why}, the last {num_last} {_together(best)}", num_last=num_last, last_size=best)
    words = f"{num_tasks} images, {_together(best)} (parallelism=data lets each work by itself)"
    return WorkLayout(world_size // best, best, words)


def _fastest_size(configs: Sequence[RunConfig], batches: int, topology: Topology, num_linked: int) -> int | str:
    """Estimate with how many ranks per image the last `batches` end first. Returns why not, if no size above 1 is."""
    model, wanted, world_size = configs[0].model, configs[0].parallelism.context_size, topology.world_size
    assert isinstance(model, FluxModelConfig)
    architecture, tokens = Architecture.of(model), max(map(usual_tokens, configs))
    on_host = topology.local_world_size or world_size
    possible = _possible_sizes(world_size, on_host, num_linked, architecture.heads)
    if wanted not in (None, 1, *possible):
        sizes = ", ".join(map(str, possible)) or "none"
        return (
            f"it must divide the {world_size} ranks ({on_host} on this machine), and must not exceed the {num_linked} "
            f"GPUs that NVLink connects or the {architecture.heads} attention heads; possible sizes: {sizes}"
        )
    best, least_s = 1, step_s(architecture, tokens, 1)
    for size in (size for size in possible if wanted in (None, size)):
        seconds = ceil(batches / (world_size // size)) * step_s(architecture, tokens, size)
        if seconds < _WORTHWHILE * least_s:
            best, least_s = size, seconds
    return best if best > 1 else "ranks that work alone are estimated to be as fast"


def _without(wanted: int | None, layout: WorkLayout, reason: str) -> WorkLayout:
    """`layout`, whose `why` says that `parallelism.context_size` has no effect, if the user has set it."""
    if wanted in (None, 1):
        return layout
    return replace(layout, why=f"{layout.why}; parallelism.context_size={wanted} has no effect: {reason}")


def _possible_sizes(world_size: int, on_host: int, num_linked: int, heads: int) -> list[int]:
    """Possible sizes of a replica: on one machine, connected by NVLink, at least one attention head for each rank."""
    most = min(on_host, num_linked, heads)
    return [size for size in range(2, most + 1) if world_size % size == 0 and on_host % size == 0]


def _allow_context(configs: Sequence[RunConfig]) -> bool:
    """Whether the optimizations allow context parallelism. `parallelism=context` reports an error in the other case."""
    return all(
        isinstance(config.model, FluxModelConfig)
        and config.optimization.hoist_constants
        and not config.optimization.fp8_attention
        and not config.optimization.compile_blocks
        for config in configs
    )


def _together(size: int) -> str:
    return f"each by {size} ranks together"
