"""Send a value from the first rank of a group to the others: tensors by a broadcast, the rest as text.

The text is sent first, so that the other hosts do not wait for a device. It is pickled, as in PyTorch's own object
collectives. That is safe, because it comes from a rank of the same run.
"""

from __future__ import annotations

import base64
import io
import pickle
from collections.abc import Sequence
from typing import Any

import torch

from fluxexp.parallel.collectives import Collectives

_ALIGNMENT = 16
"""In bytes. Each tensor begins at a multiple of it, which vectorized kernels need."""


def packed(value: Any, device: torch.device) -> tuple[str, list[torch.Tensor]]:
    """Split `value` into text and its tensors on `device`. The text does not contain these tensors."""
    body, head = io.BytesIO(), io.BytesIO()
    pickler = _Pickler(body, device)
    pickler.dump(value)
    pickle.dump([(tuple(tensor.shape), tensor.dtype) for tensor in pickler.tensors], head)
    return base64.b64encode(head.getvalue() + body.getvalue()).decode(), pickler.tensors


def unpacked(text: str, collectives: Collectives) -> Any:
    """Restore the value from the text of `packed`, with the tensors that the first rank broadcasts by `send`."""
    stream = io.BytesIO(base64.b64decode(text))
    tensors = [torch.empty(shape, dtype=dtype, device=collectives.device) for shape, dtype in pickle.load(stream)]
    if tensors:
        flat = torch.empty(sum(map(_room, tensors)), dtype=torch.uint8, device=collectives.device)
        collectives.broadcast(flat)
        for tensor, part in zip(tensors, _parts(flat, tensors), strict=True):
            tensor.copy_(part.view(tensor.dtype).view(tensor.shape))
    return _Unpickler(stream, tensors).load()


def send(tensors: Sequence[torch.Tensor], collectives: Collectives) -> None:
    """Broadcast the tensors of `packed`. Only the first rank calls it."""
    if not tensors:
        return
    flat = torch.empty(sum(map(_room, tensors)), dtype=torch.uint8, device=collectives.device)
    for tensor, part in zip(tensors, _parts(flat, tensors), strict=True):
        part.view(tensor.dtype).copy_(tensor.flatten())
    collectives.broadcast(flat)


def _parts(flat: torch.Tensor, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The slice of `flat` for each tensor."""
    parts, first = [], 0
    for tensor in tensors:
        parts.append(flat[first : first + tensor.numel() * tensor.element_size()])
        first += _room(tensor)
    return parts


def _room(tensor: torch.Tensor) -> int:
    """Size of a tensor in bytes, rounded up to the alignment."""
    num_bytes = tensor.numel() * tensor.element_size()
    return num_bytes + -num_bytes % _ALIGNMENT


class _Pickler(pickle.Pickler):
    def __init__(self, stream: io.BytesIO, device: torch.device) -> None:
        super().__init__(stream)
        self._device = device
        self.tensors: list[torch.Tensor] = []

    def persistent_id(self, value: Any) -> int | None:
        """Number of a tensor that is broadcast; None for other values."""
        if not isinstance(value, torch.Tensor) or value.device != self._device:
            return None
        self.tensors.append(value)
        return len(self.tensors) - 1


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, tensors: Sequence[torch.Tensor]) -> None:
        super().__init__(stream)
        self._tensors = tensors

    def persistent_load(self, number: int) -> torch.Tensor:
        """The broadcast tensor of this number."""
        return self._tensors[number]
