"""Weight streaming: weights rest in page-locked host memory and are on the GPU only while they are used.

Either a whole part of a pipeline comes for its stage (`WeightStreaming`), or blocks come one after another, and the
next one is copied while one computes (`BlockStream`). Weights never change, so nothing is copied back, and results have
the same bits. Knows no FLUX. `offload_plan.py` decides how much stays on the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fluxexp.models.offload.offload_plan import spread_evenly

_LARGE = 1 << 30
"""Bytes from which on a block is given back at once: that waits for the device, once a stage at the most."""
_ALIGNMENT = 256
"""Bytes: what kernels may expect of a tensor's address."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies in a flat block of bytes, and how it is to be seen."""

    offset: int
    num_bytes: int
    dtype: torch.dtype
    shape: torch.Size
    strides: tuple[int, ...]

    def seen_in(self, block: torch.Tensor) -> torch.Tensor:
        flat = block[self.offset : self.offset + self.num_bytes].view(self.dtype)
        return flat.as_strided(self.shape, self.strides)


class Weights:
    """The parameters and buffers of some modules, which travel together as one copy.

    Args:
        modules: on any device; their tensors are laid into page-locked memory of the host.
        but: modules below them whose tensors stay where they are.
    """

    def __init__(
        self, modules: Iterable[torch.nn.Module], device: torch.device, but: Iterable[torch.nn.Module] = ()
    ) -> None:
        self._device = device
        self._tensors = _tensors(modules, but)
        self._places: list[_Place] = []
        offset = 0
        for tensor in self._tensors:
            num_bytes = tensor.numel() * tensor.element_size()
            dense = torch.empty_like(tensor, device="meta")  # in the same order, without gaps
            self._places.append(_Place(offset, num_bytes, tensor.dtype, tensor.shape, dense.stride()))
            offset += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        self.num_bytes = offset
        self._host = _HostBlock(offset, is_locked=device.type == "cuda")
        with torch.no_grad():
            for tensor, place in zip(self._tensors, self._places, strict=True):
                place.seen_in(self._host.bytes).copy_(tensor)
        self.is_here = False
        self._has_own_block = False
        self._look_at(self._host.bytes)

    def come(self, block: torch.Tensor | None = None) -> None:
        """Be copied to the device, in the order of the current stream; into `block` if there is one."""
        with torch.inference_mode(False):
            self._has_own_block = block is None
            if block is None:
                block = torch.empty(self.num_bytes, dtype=torch.uint8, device=self._device)
            block[: self.num_bytes].copy_(self._host.bytes, non_blocking=True)
            self._look_at(block)
        self.is_here = True

    def go(self) -> None:
        """Give the device's memory back: what comes later in the stream that they came in may have it."""
        with torch.inference_mode(False):
            self._look_at(self._host.bytes)
        self.is_here = False
        if self._has_own_block and self._device.type == "cuda" and self.num_bytes >= _LARGE:
            torch.cuda.empty_cache()  # before something small settles in it, so that what comes next finds it whole

    def _look_at(self, block: torch.Tensor) -> None:
        for tensor, place in zip(self._tensors, self._places, strict=True):
            tensor.data = place.seen_in(block)


def _tensors(modules: Iterable[torch.nn.Module], but: Iterable[torch.nn.Module] = ()) -> list[torch.Tensor]:
    """Parameters and buffers of `modules`, each once, without those of `but`."""
    left_out = {id(tensor) for module in but for tensor in _tensors([module])}
    found: dict[int, torch.Tensor] = {}
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            if id(tensor) not in left_out:
                found.setdefault(id(tensor), tensor)
    return list(found.values())


def _move(modules: Iterable[torch.nn.Module], device: torch.device, but: Iterable[torch.nn.Module]) -> None:
    with torch.inference_mode(False):
        for tensor in _tensors(modules, but):
            tensor.data = tensor.data.to(device)


class _HostBlock:
    """Bytes of the host; page-locked in place, as PyTorch's own allocator would round them up to a power of two."""

    def __init__(self, num_bytes: int, is_locked: bool) -> None:
        self.bytes = torch.empty(num_bytes, dtype=torch.uint8)
        self._is_locked = False
        if is_locked and num_bytes:
            code = _cuda().cudaHostRegister(self.bytes.data_ptr(), num_bytes, 0)
            if int(code) != 0:
                raise RuntimeError(
                    f"the host has no {num_bytes / 2**30:.1f} GiB of memory to keep weights page-locked in "
                    f"(cudaHostRegister: {code}): use another optimization.offload, or raise its limit (ulimit -l)"
                )
            self._is_locked = True

    def __del__(self) -> None:
        if self._is_locked:
            _cuda().cudaHostUnregister(self.bytes.data_ptr())


def _cuda() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


class WeightStreaming:
    """Parts of a pipeline that come for their stage. Without any, all of them are always there.

    Args:
        visitors: by the name of the stage that needs them.
        leaving: by stage, visitors that must not stay for it.
    """

    def __init__(
        self, visitors: Mapping[str, Weights] | None = None, leaving: Mapping[str, Collection[str]] | None = None
    ) -> None:
        self._visitors = dict(visitors or {})
        self._leaving = dict(leaving or {})

    @property
    def streaming_bytes(self) -> int:
        """Memory that a part still needs for its stage, at the most: what is free must not be used up without it."""
        return max((self._still_needed(name) for name in self._visitors), default=0)

    def _still_needed(self, stage: str) -> int:
        part = self._visitors[stage]
        leaving = [self._visitors[name] for name in self._leaving.get(stage, ())]
        freed = sum(other.num_bytes for other in leaving if other.is_here)
        return 0 if part.is_here else max(0, part.num_bytes - freed)

    def visits(self, stage: str) -> bool:
        """Whether there are weights that come for this stage."""
        return stage in self._visitors

    def enter(self, stage: str) -> None:
        """Have the weights of a stage on the device for what is given to it from now on."""
        for name in self._leaving.get(stage, ()):
            if self._visitors[name].is_here:
                self._visitors[name].go()
        part_of_stage = self._visitors.get(stage)
        if part_of_stage is not None and not part_of_stage.is_here:
            part_of_stage.come()


class _Slot:
    """A block of the device's memory for one block's weights."""

    def __init__(self) -> None:
        self.bytes: torch.Tensor | None = None
        self.holds: Weights | None = None
        self.arrived: torch.cuda.Event | None = None
        self.is_free: torch.cuda.Event | None = None
        """When what was computed with what it held before is done."""


class Slots:
    """A few blocks of the device's memory that take turns. With one alone nothing comes while a block is at work."""

    def __init__(self, number: int, device: torch.device) -> None:
        self._slots = [_Slot() for _ in range(number)]
        self._num_bytes = 0
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._device = device

    def make_room_for(self, weights: Iterable[Weights]) -> None:
        """Let these come, too. Before any does."""
        self._num_bytes = max(self._num_bytes, *(each.num_bytes for each in weights), 0)

    def __len__(self) -> int:
        return len(self._slots)

    def fetch(self, weights: Weights) -> None:
        """Begin to copy weights, if they are not there or on their way, in place of those that came first."""
        if any(slot.holds is weights for slot in self._slots):
            return
        slot = self._slots[0]
        if slot.bytes is None:  # may run out of memory: then nothing has happened yet
            with torch.inference_mode(False):
                slot.bytes = torch.empty(self._num_bytes, dtype=torch.uint8, device=self._device)
        self._slots.append(self._slots.pop(0))
        if slot.holds is not None:
            slot.holds.go()
        slot.holds = weights
        if self._copies is None:
            weights.come(slot.bytes)
            return
        if slot.is_free is not None:
            self._copies.wait_event(slot.is_free)
        else:
            self._copies.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._copies):
            weights.come(slot.bytes)
        slot.arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        slot.arrived.record(self._copies)

    def begin(self, weights: Weights) -> None:
        """Let what is given to the device from now on wait for weights."""
        self.fetch(weights)
        slot = self._slot_of(weights)
        if slot.arrived is not None:
            torch.cuda.current_stream(self._device).wait_event(slot.arrived)

    def end(self, weights: Weights) -> None:
        """Let their slot be used again when the device is done with what it was given."""
        if self._copies is not None:
            slot = self._slot_of(weights)
            slot.is_free = torch.cuda.Event()  # type: ignore[no-untyped-call]
            slot.is_free.record(torch.cuda.current_stream(self._device))

    def _slot_of(self, weights: Weights) -> _Slot:
        return next(slot for slot in self._slots if slot.holds is weights)


class BlockStream:
    """Blocks that are used in order, over and over. Some stay on the device, the others come when it is their turn.

    Those that stay are spread evenly among those that come, so that each copy has as much work to hide behind.

    Args:
        blocks: modules, in the order of their use.
        but: of each block, modules whose weights are not its own.
        num_staying: how many stay.
    """

    def __init__(
        self,
        blocks: Sequence[torch.nn.Module],
        slots: Slots,
        device: torch.device,
        num_staying: int = 0,
        but: Sequence[Iterable[torch.nn.Module]] | None = None,
    ) -> None:
        self._slots = slots
        self._weights: list[Weights | None] = []
        staying = spread_evenly(len(blocks), num_staying)
        for number, block in enumerate(blocks):
            others = () if but is None else but[number]
            if number in staying:
                _move([block], device, others)
            self._weights.append(None if number in staying else Weights([block], device, others))
        self._coming = [number for number, weights in enumerate(self._weights) if weights is not None]
        slots.make_room_for(weights for weights in self._weights if weights is not None)

    def begin(self, number: int) -> None:
        """The block of that number is used next."""
        weights = self._weights[number]
        if weights is not None:
            self._slots.begin(weights)

    def end(self, number: int) -> None:
        """The device was given the block's work."""
        weights = self._weights[number]
        if weights is None:
            return
        self._slots.end(weights)
        place = self._coming.index(number)
        for ahead in range(1, len(self._slots) + 1):  # its own slot is used again, too
            following = self._weights[self._coming[(place + ahead) % len(self._coming)]]
            assert following is not None
            self._slots.fetch(following)

    def around(self, number: int, block: Callable[..., Any]) -> Callable[..., Any]:
        """`block`, called with its weights there."""
        if self._weights[number] is None:
            return block

        def streamed(*arguments: Any) -> Any:
            self.begin(number)
            result = block(*arguments)
            self.end(number)
            return result

        return streamed

    def hook(self, blocks: Sequence[torch.nn.Module]) -> None:
        """Have the modules themselves, which are called by others, come for each call."""
        for number, block in enumerate(blocks):
            if self._weights[number] is not None:
                block.register_forward_pre_hook(lambda *_, number=number: self.begin(number))
                block.register_forward_hook(lambda *_, number=number: self.end(number))
