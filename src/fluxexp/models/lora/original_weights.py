"""Copies of weights as they were loaded, from which each change of the LoRAs starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fluxexp.models.kernels.fp8_linear import Fp8Linear
from fluxexp.models.kernels.host_memory import HostCopies
from fluxexp.parallel.topology import free_memory_bytes

_FREE_SHARE = 0.25
"""Copies of loaded weights stay on a GPU as long as this share of its memory is free with them, for images."""


@dataclass(frozen=True, slots=True)
class Original:
    """Copies of the loaded weights of one layer."""

    weight: torch.Tensor | None
    """None: the layer has it itself (`Fp8Linear.original`)."""
    bias: torch.Tensor | None


class OriginalWeights:
    """The originals of all layers that were ever changed, by name.

    Args:
        device: where the weights are used.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._originals: dict[str, Original] = {}
        self._host_copies: list[HostCopies] = []
        """The memory of originals on the host. Each block has all layers that one LoRA was the first to change."""

    def __getitem__(self, name: str) -> Original:
        return self._originals[name]

    def keep(self, layers: Mapping[str, Any]) -> None:
        """Copy the weights of layers that are not known: to the GPU as long as it has room, else to the host.

        Raises:
            RuntimeError: the host cannot pin so much memory.
        """
        new = {name: layer for name, layer in layers.items() if name not in self._originals}
        weights = {name: layer.weight.detach() for name, layer in new.items() if not isinstance(layer, Fp8Linear)}
        copies = self._copied(weights) if weights else {}
        for name, layer in new.items():
            bias = getattr(layer, "bias", None)
            self._originals[name] = Original(copies.get(name), None if bias is None else bias.detach().clone())

    def _copied(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        copies: dict[str, torch.Tensor] = {}
        on_host: dict[str, torch.Tensor] = {}
        room = self._room_bytes()
        for name, weight in weights.items():
            if weight.is_cuda and weight.nbytes <= room:
                copies[name] = weight.clone()
                room -= weight.nbytes
            else:
                on_host[name] = weight
        if on_host:
            block = HostCopies(list(on_host.values()), is_pinned=self._device.type == "cuda")
            self._host_copies.append(block)
            copies |= zip(on_host, block.tensors, strict=True)
        return copies

    def _room_bytes(self) -> float:
        """Bytes of the GPU's memory that copies of weights may take."""
        free = free_memory_bytes(self._device)
        if free is None:
            return 0.0
        return free - _FREE_SHARE * torch.cuda.get_device_properties(self._device).total_memory
