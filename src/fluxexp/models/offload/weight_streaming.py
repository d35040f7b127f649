"""Weight streaming: weights stay in pinned host memory and are copied to the GPU when they are used.

Either a whole part of a pipeline is loaded for its stage (`WeightStreaming`), or blocks are loaded one after another,
and the next one is copied while the current one computes (`BlockStream`). Weights never change, so nothing is copied
back, and results have the same bits. `offload_plan.py` decides how much stays on the GPU. This module knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch

from fluxexp.models.kernels.host_memory import HostBlock, tensor_layouts
from fluxexp.models.offload.offload_plan import spread_evenly

_LARGE = 1 << 30
"""Bytes from which memory is returned to the driver at once. That waits for the device, at most once per stage."""


class Weights:
    """The parameters and buffers of some modules, in one block of memory, so that they move in one copy.

    The modules stay as they are: only the memory that their tensors point to changes.

    Args:
        modules: on any device. Their tensors are copied to pinned host memory.
        device: where `load` copies them.
        excluded: modules below them whose tensors stay where they are.

    Raises:
        RuntimeError: the host cannot pin so much memory.
    """

    def __init__(
        self, modules: Iterable[torch.nn.Module], device: torch.device, excluded: Iterable[torch.nn.Module] = ()
    ) -> None:
        self._device = device
        self._tensors = _tensors(modules, excluded)
        self._layouts, self.num_bytes = tensor_layouts(self._tensors)
        self._host = HostBlock(self.num_bytes, is_pinned=device.type == "cuda")
        with torch.no_grad():
            for tensor, layout in zip(self._tensors, self._layouts, strict=True):
                layout.view_in(self._host.bytes).copy_(tensor)
        self.is_loaded = False
        self._has_own_block = False
        self._point_to(self._host.bytes)

    def load(self, block: torch.Tensor | None = None) -> None:
        """Queue the copy to the device on the current stream: into `block` if given, else into new memory."""
        # Outside of inference mode, so that parameters and buffers stay normal tensors.
        with torch.inference_mode(False):
            self._has_own_block = block is None
            if block is None:
                block = torch.empty(self.num_bytes, dtype=torch.uint8, device=self._device)
            block[: self.num_bytes].copy_(self._host.bytes, non_blocking=True)
            self._point_to(block)
        self.is_loaded = True

    def unload(self) -> None:
        """Free the memory on the device. Later work of the stream that loaded the weights may use it again."""
        with torch.inference_mode(False):
            self._point_to(self._host.bytes)
        self.is_loaded = False
        if self._has_own_block and self._device.type == "cuda" and self.num_bytes >= _LARGE:
            torch.cuda.empty_cache()  # before small tensors fragment it: the next part needs a whole block

    def _point_to(self, block: torch.Tensor) -> None:
        for tensor, layout in zip(self._tensors, self._layouts, strict=True):
            tensor.data = layout.view_in(block)


def _tensors(modules: Iterable[torch.nn.Module], excluded: Iterable[torch.nn.Module] = ()) -> list[torch.Tensor]:
    """Parameters and buffers of `modules`, each once even if modules share it, without those of `excluded`."""
    left_out = {id(tensor) for module in excluded for tensor in _tensors([module])}
    found: dict[int, torch.Tensor] = {}
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            if id(tensor) not in left_out:
                found.setdefault(id(tensor), tensor)
    return list(found.values())


def _move(modules: Iterable[torch.nn.Module], device: torch.device, excluded: Iterable[torch.nn.Module]) -> None:
    with torch.inference_mode(False):
        for tensor in _tensors(modules, excluded):
            tensor.data = tensor.data.to(device)


class WeightStreaming:
    """Parts of a pipeline that are loaded for a stage. Without parts, all weights stay on the device.

    Args:
        parts: by the name of the stage that needs them.
        evicted: by stage, the names of the parts that must not be on the device meanwhile.
    """

    def __init__(
        self, parts: Mapping[str, Weights] | None = None, evicted: Mapping[str, Collection[str]] | None = None
    ) -> None:
        self._parts = dict(parts or {})
        self._evicted = dict(evicted or {})

    @property
    def streaming_bytes(self) -> int:
        """The most memory, in bytes, that loading a part can still take. Batch sizes must leave this much free."""
        return max((self._missing_bytes(name) for name in self._parts), default=0)

    def _missing_bytes(self, stage: str) -> int:
        part = self._parts[stage]
        evicted = [self._parts[name] for name in self._evicted.get(stage, ())]
        freed = sum(other.num_bytes for other in evicted if other.is_loaded)
        return 0 if part.is_loaded else max(0, part.num_bytes - freed)

    def streams(self, stage: str) -> bool:
        """Whether weights are loaded for this stage."""
        return stage in self._parts

    def unload(self) -> None:
        """Move all weights back to the host, so that they can be changed there."""
        for part in self._parts.values():
            if part.is_loaded:
                part.unload()

    def load_for(self, stage: str) -> None:
        """Load the weights of a stage for all work that is queued on the device from now on."""
        for name in self._evicted.get(stage, ()):  # first, because both may not fit together
            if self._parts[name].is_loaded:
                self._parts[name].unload()
        part_of_stage = self._parts.get(stage)
        if part_of_stage is not None and not part_of_stage.is_loaded:
            part_of_stage.load()


class _Slot:
    """Memory on the device for the weights of one block."""

    def __init__(self) -> None:
        self.bytes: torch.Tensor | None = None
        self.holds: Weights | None = None
        self.loaded: torch.cuda.Event | None = None
        """When the weights in it have been copied."""
        self.released: torch.cuda.Event | None = None
        """When the work with the weights in it is done, so that others may overwrite them."""


class Slots:
    """Slots of device memory that streamed blocks use in turn. With one slot, no copy runs while a block computes."""

    def __init__(self, number: int, device: torch.device) -> None:
        self._slots = [_Slot() for _ in range(number)]
        self._num_bytes = 0
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._device = device

    def reserve(self, weights: Iterable[Weights]) -> None:
        """Make slots large enough for each of `weights`. Call it before the first `prefetch`."""
        self._num_bytes = max(self._num_bytes, *(each.num_bytes for each in weights), 0)

    def __len__(self) -> int:
        return len(self._slots)

    def prefetch(self, weights: Weights) -> None:
        """Start to copy weights into the slot that was filled longest ago, unless they are in a slot already."""
        if any(slot.holds is weights for slot in self._slots):
            return
        slot = self._slots[0]
        if slot.bytes is None:  # allocate before anything changes: this may run out of memory
            with torch.inference_mode(False):
                slot.bytes = torch.empty(self._num_bytes, dtype=torch.uint8, device=self._device)
        self._slots.append(self._slots.pop(0))
        if slot.holds is not None:
            slot.holds.unload()
        slot.holds = weights
        if self._copies is None:
            weights.load(slot.bytes)
            return
        # The copy must not overwrite weights that queued work still reads. It waits for exactly that work if an event
        # marks its end. A new slot has none: its memory may have belonged to anything that the current stream used.
        if slot.released is not None:
            self._copies.wait_event(slot.released)
        else:
            self._copies.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._copies):
            weights.load(slot.bytes)
        slot.loaded = torch.cuda.Event()  # type: ignore[no-untyped-call]
        slot.loaded.record(self._copies)

    def begin(self, weights: Weights) -> None:
        """Let all work that is queued from now on wait for these weights."""
        self.prefetch(weights)
        slot = self._slot_of(weights)
        if slot.loaded is not None:
            torch.cuda.current_stream(self._device).wait_event(slot.loaded)

    def end(self, weights: Weights) -> None:
        """Let others use the slot of these weights once the device has done the work queued so far."""
        if self._copies is not None:
            slot = self._slot_of(weights)
            slot.released = torch.cuda.Event()  # type: ignore[no-untyped-call]
            slot.released.record(torch.cuda.current_stream(self._device))

    def clear(self) -> None:
        """Let no slot hold weights. The caller waits for the device before and after it changes them."""
        for slot in self._slots:
            if slot.holds is not None:
                slot.holds.unload()
                slot.holds = None

    def _slot_of(self, weights: Weights) -> _Slot:
        return next(slot for slot in self._slots if slot.holds is weights)


class BlockStream:
    """Blocks that are used in a fixed order, again and again. Some stay on the device, the others are streamed.

    Those that stay are spread evenly among the others, so that each copy overlaps with about the same amount of work.

    Args:
        blocks: modules, in the order of their use.
        slots: device memory for the streamed blocks; several streams may share it.
        device: where the blocks are used.
        num_resident: how many blocks stay on the device.
        excluded: for each block, modules below it whose weights are not streamed with it.
    """

    def __init__(
        self,
        blocks: Sequence[torch.nn.Module],
        slots: Slots,
        device: torch.device,
        num_resident: int = 0,
        excluded: Sequence[Iterable[torch.nn.Module]] | None = None,
    ) -> None:
        self._slots = slots
        self._weights: list[Weights | None] = []
        resident = spread_evenly(len(blocks), num_resident)
        for number, block in enumerate(blocks):
            others = () if excluded is None else excluded[number]
            if number in resident:
                _move([block], device, others)
            self._weights.append(None if number in resident else Weights([block], device, others))
        self._streamed = [number for number, weights in enumerate(self._weights) if weights is not None]
        slots.reserve(weights for weights in self._weights if weights is not None)

    def unload(self) -> None:
        """Move all streamed weights back to the host, so that they can be changed there."""
        self._slots.clear()

    def begin(self, number: int) -> None:
        """Call it before block `number` runs: all work queued from now on waits for its weights."""
        weights = self._weights[number]
        if weights is not None:
            self._slots.begin(weights)

    def end(self, number: int) -> None:
        """Call it after the work of block `number` is queued: releases its slot, and prefetches the next blocks."""
        weights = self._weights[number]
        if weights is None:
            return
        self._slots.end(weights)
        index = self._streamed.index(number)
        # As many blocks as there are slots: the slot of this block is free, too. After the last block comes the first.
        for ahead in range(1, len(self._slots) + 1):
            following = self._weights[self._streamed[(index + ahead) % len(self._streamed)]]
            assert following is not None
            self._slots.prefetch(following)

    def wrap(self, number: int, block: Callable[..., Any]) -> Callable[..., Any]:
        """`block`, the function of block `number`, as a function that streams its weights."""
        if self._weights[number] is None:
            return block

        def streamed(*arguments: Any) -> Any:
            self.begin(number)
            result = block(*arguments)
            self.end(number)
            return result

        return streamed

    def register_hooks(self, blocks: Sequence[torch.nn.Module]) -> None:
        """Stream the weights of modules that a library calls: with hooks before and after each forward pass."""
        for number, block in enumerate(blocks):
            if self._weights[number] is not None:
                block.register_forward_pre_hook(lambda *_, number=number: self.begin(number))
                block.register_forward_hook(lambda *_, number=number: self.end(number))
