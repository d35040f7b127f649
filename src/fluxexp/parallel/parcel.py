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

from fluxexp.parallel.links import Links

_ALIGNMENT = 16
"""Bytes; every tensor begins at a multiple, as kernels like it."""


def packed(value: Any, device: torch.device) -> tuple[str, list[torch.Tensor]]:
    """`value` as text, and its tensors on `device`, which are not in the text."""
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, device)
    pickler.dump(value)
    return base64.b64encode(buffer.getvalue()).decode(), pickler.tensors


def unpacked(text: str, links: Links) -> Any:
    """What `packed` was given, with the tensors that the first rank sends next (`send`)."""
    unpickler = _Unpickler(io.BytesIO(base64.b64decode(text)), links.device)
    value = unpickler.load()
    if unpickler.tensors:
        flat = torch.empty(sum(map(_room, unpickler.tensors)), dtype=torch.uint8, device=links.device)
        links.broadcast(flat)
        for tensor, part in zip(unpickler.tensors, _parts(flat, unpickler.tensors), strict=True):
            tensor.copy_(part.view(tensor.dtype).view(tensor.shape))
    return value


def send(tensors: Sequence[torch.Tensor], links: Links) -> None:
    """Give the others the tensors of what `packed` made, on the first rank."""
    if not tensors:
        return
    flat = torch.empty(sum(map(_room, tensors)), dtype=torch.uint8, device=links.device)
    for tensor, part in zip(tensors, _parts(flat, tensors), strict=True):
        part.view(tensor.dtype).copy_(tensor.flatten())
    links.broadcast(flat)


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
    def __init__(self, buffer: io.BytesIO, device: torch.device) -> None:
        super().__init__(buffer)
        self._device = device
        self.tensors: list[torch.Tensor] = []

    def persistent_id(self, value: Any) -> Any:
        """Shape and type of a tensor that travels by itself."""
        if not isinstance(value, torch.Tensor) or value.device != self._device:
            return None
        self.tensors.append(value)
        return tuple(value.shape), value.dtype


class _Unpickler(pickle.Unpickler):
    def __init__(self, buffer: io.BytesIO, device: torch.device) -> None:
        super().__init__(buffer)
        self._device = device
        self.tensors: list[torch.Tensor] = []

    def persistent_load(self, known: Any) -> torch.Tensor:
        """A tensor to be filled."""
        shape, dtype = known
        self.tensors.append(torch.empty(shape, dtype=dtype, device=self._device))
        return self.tensors[-1]
