"""A value on its way from the first of some ranks to the others: its tensors by a collective, the rest as text.

The text travels ahead, so that the others' hosts need not wait for a device. It is pickled, as it is in PyTorch's own
collectives of objects: it comes from a rank of the same run.
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
"""Bytes; every tensor begins at a multiple, as kernels like it."""


def packed(value: Any, device: torch.device) -> tuple[str, list[torch.Tensor]]:
    """`value` as text, and its tensors on `device`, which are not in the text."""
    body, head = io.BytesIO(), io.BytesIO()
    pickler = _Pickler(body, device)
    pickler.dump(value)
    pickle.dump([(tuple(tensor.shape), tensor.dtype) for tensor in pickler.tensors], head)
    return base64.b64encode(head.getvalue() + body.getvalue()).decode(), pickler.tensors


def unpacked(text: str, collectives: Collectives) -> Any:
    """What `packed` was given, with the tensors that the first rank sends next (`send`)."""
    stream = io.BytesIO(base64.b64decode(text))
    tensors = [torch.empty(shape, dtype=dtype, device=collectives.device) for shape, dtype in pickle.load(stream)]
    if tensors:
        flat = torch.empty(sum(map(_room, tensors)), dtype=torch.uint8, device=collectives.device)
        collectives.broadcast(flat)
        for tensor, part in zip(tensors, _parts(flat, tensors), strict=True):
            tensor.copy_(part.view(tensor.dtype).view(tensor.shape))
    return _Unpickler(stream, tensors).load()


def send(tensors: Sequence[torch.Tensor], collectives: Collectives) -> None:
    """Give the others the tensors of what `packed` made, on the first rank."""
    if not tensors:
        return
    flat = torch.empty(sum(map(_room, tensors)), dtype=torch.uint8, device=collectives.device)
    for tensor, part in zip(tensors, _parts(flat, tensors), strict=True):
        part.view(tensor.dtype).copy_(tensor.flatten())
    collectives.broadcast(flat)


def _parts(flat: torch.Tensor, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Where in `flat` each tensor lies."""
    parts, first = [], 0
    for tensor in tensors:
        parts.append(flat[first : first + tensor.numel() * tensor.element_size()])
        first += _room(tensor)
    return parts


def _room(tensor: torch.Tensor) -> int:
    """Bytes, up to where the next may begin."""
    num_bytes = tensor.numel() * tensor.element_size()
    return num_bytes + -num_bytes % _ALIGNMENT


class _Pickler(pickle.Pickler):
    def __init__(self, stream: io.BytesIO, device: torch.device) -> None:
        super().__init__(stream)
        self._device = device
        self.tensors: list[torch.Tensor] = []

    def persistent_id(self, value: Any) -> int | None:
        """Number of a tensor that travels by itself."""
        if not isinstance(value, torch.Tensor) or value.device != self._device:
            return None
        self.tensors.append(value)
        return len(self.tensors) - 1


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, tensors: Sequence[torch.Tensor]) -> None:
        super().__init__(stream)
        self._tensors = tensors

    def persistent_load(self, number: int) -> torch.Tensor:
        """The tensor that came by itself."""
        return self._tensors[number]
