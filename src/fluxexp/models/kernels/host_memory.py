"""Host memory for weights: many tensors in one block, pinned so that copies run while the host and the GPU work."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

_ALIGNMENT = 256
"""Alignment in bytes that kernels may expect of a tensor's address."""
_AHEAD = 2
"""Number of items that `Uploads` copies ahead of their use."""


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """Where a tensor is in a flat block of bytes, with its dtype, shape and strides."""

    offset: int
    num_bytes: int
    dtype: torch.dtype
    shape: torch.Size
    strides: tuple[int, ...]

    def view_in(self, block: torch.Tensor) -> torch.Tensor:
        """The tensor as a view of `block`, uint8."""
        flat = block[self.offset : self.offset + self.num_bytes].view(self.dtype)
        return flat.as_strided(self.shape, self.strides)


def tensor_layouts(tensors: Iterable[torch.Tensor]) -> tuple[list[TensorLayout], int]:
    """The places of `tensors`, one after another in one block, and the size of the block in bytes."""
    layouts: list[TensorLayout] = []
    offset = 0
    for tensor in tensors:
        num_bytes = tensor.numel() * tensor.element_size()
        # The strides of a dense copy in the same memory format. A channels-last weight must stay channels last:
        # another layout may choose another kernel, with other roundings.
        dense = torch.empty_like(tensor, device="meta")
        layouts.append(TensorLayout(offset, num_bytes, tensor.dtype, tensor.shape, dense.stride()))
        offset += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT  # rounded up
    return layouts, offset


class HostBlock:
    """Bytes in host memory, pinned if asked: only copies from pinned memory run while the host and the GPU work.

    They are pinned in place, because PyTorch's allocator of pinned memory would round the size up to a power of two.
    Keep the block as long as views of `bytes` are used.

    Args:
        num_bytes: size.
        is_pinned: whether to pin it.
        hint: for the error: what to do if it cannot be pinned.

    Raises:
        RuntimeError: the host cannot pin so much memory.
    """

    def __init__(
        self, num_bytes: int, *, is_pinned: bool, hint: str = "use another optimization.offload, or raise"
    ) -> None:
        self.bytes = torch.empty(num_bytes, dtype=torch.uint8)
        self._is_pinned = False
        if is_pinned and num_bytes:
            code = _cuda().cudaHostRegister(self.bytes.data_ptr(), num_bytes, 0)
            if int(code) != 0:
                raise RuntimeError(
                    f"the host cannot pin {num_bytes / 2**30:.1f} GiB of memory for weights "
                    f"(cudaHostRegister: {code}): {hint} the limit (ulimit -l)"
                )
            self._is_pinned = True

    def __del__(self) -> None:
        if self._is_pinned:
            _cuda().cudaHostUnregister(self.bytes.data_ptr())


class HostCopies:
    """Copies of tensors in one block of host memory. Keep it as long as the copies are used.

    Args:
        tensors: on any device. Returns after all of them are copied.
        is_pinned: whether to pin the block.

    Raises:
        RuntimeError: the host cannot pin so much memory.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], *, is_pinned: bool) -> None:
        with torch.inference_mode(False), torch.no_grad():
            layouts, num_bytes = tensor_layouts(tensors)
            hint = "use lora=none, or raise"
            self._block = HostBlock(num_bytes, is_pinned=is_pinned, hint=hint)
            self.tensors = [layout.view_in(self._block.bytes) for layout in layouts]
            """In the order of the originals."""
            for copy, tensor in zip(self.tensors, tensors, strict=True):
                copy.copy_(tensor.detach(), non_blocking=True)
            for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
                torch.cuda.current_stream(device).synchronize()


class Uploads:
    """Copies tensors to a GPU on a stream of its own, some items ahead of the work that uses them.

    Args:
        device: where to. On a CPU nothing is copied.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = None

    def ahead(self, items: Iterable[Sequence[torch.Tensor]]) -> Iterator[Sequence[torch.Tensor]]:
        """The tensors of each item on the device, for work on the current stream.

        While an item is in use, those of the next items are copied. The originals must not change meanwhile.
        """
        if self._device.type != "cuda":
            yield from items
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        started: deque[tuple[list[torch.Tensor], torch.cuda.Event]] = deque()
        for tensors in items:
            started.append(self._start(tensors))
            if len(started) > _AHEAD:
                yield self._arrived(*started.popleft())
        while started:
            yield self._arrived(*started.popleft())

    def _start(self, tensors: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], torch.cuda.Event]:
        with torch.cuda.stream(self._stream):
            copies = [tensor.to(self._device, non_blocking=True) for tensor in tensors]
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(self._stream)
        return copies, copied

    def _arrived(self, copies: list[torch.Tensor], copied: torch.cuda.Event) -> list[torch.Tensor]:
        current = torch.cuda.current_stream(self._device)
        current.wait_event(copied)
        for copy in copies:  # the allocator may give their memory to the next copy only after their last use here
            copy.record_stream(current)
        return copies


def _cuda() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
