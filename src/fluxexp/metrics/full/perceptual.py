"""Distances between two pictures as networks see them: LPIPS and DISTS, by torchmetrics on torchvision's backbones."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fluxexp.arrays import BoolArray, ImageArray
from fluxexp.metrics.case import Case, MetricScores
from fluxexp.metrics.full.metric_weights import weights_identity

LEAST = 64
"""Pixels a side below which the backbones have too little to see: a small hole is looked at with what is around."""
SMALLEST = 32
"""Pixels a side of a picture below which AlexNet has nothing left after its pooling."""


class Perceptual:
    """One distance between results and truths around the hole, and between results and references."""

    def __init__(self, name: str, network: Any, identity: str, device: Any) -> None:
        self.names: Sequence[str] = (name,)
        self.identity = identity
        self._network = network.to(device).eval()
        self._device = device
        self._lock = threading.Lock()

    def score(self, case: Case) -> MetricScores:
        """Of the hole's bounding box, against the truth."""
        if case.truth is None or case.masked_region is None or not case.masked_region.any():
            return dict.fromkeys(self.names)
        box = surroundings(case.masked_region)
        return {self.names[0]: self.distance(case.result[box], case.truth[box])}

    @torch.inference_mode()
    def distance(self, a: ImageArray, b: ImageArray) -> float | None:
        """Between two pictures of one size; None below `SMALLEST` pixels a side."""
        if min(a.shape[:2]) < SMALLEST:
            return None
        with self._lock:
            return float(self._network(self._tensor(a), self._tensor(b)))

    def _tensor(self, pixels: ImageArray) -> torch.Tensor:
        """(1, 3, height, width), 0 to 1."""
        return torch.from_numpy(np.array(pixels)).to(self._device).permute(2, 0, 1)[None].float() / 255


class ToReference:
    """A perceptual distance as a pair metric."""

    def __init__(self, name: str, metric: Perceptual) -> None:
        self.names: Sequence[str] = (name,)
        self.identity = metric.identity
        self._metric = metric

    def measure(self, case: Case, reference: ImageArray) -> MetricScores:
        """Around the hole, of the whole picture where there is none."""
        if case.masked_region is not None and not case.masked_region.any():
            return dict.fromkeys(self.names)
        box = (slice(None), slice(None)) if case.masked_region is None else surroundings(case.masked_region)
        return {self.names[0]: self._metric.distance(case.result[box], reference[box])}


def make_lpips(weights: Path, device: Any) -> Perceptual:
    """LPIPS (Zhang et al. 2018) on AlexNet; the linear layers come with torchmetrics."""
    from torchmetrics.functional.image.lpips import _LPIPS

    network = _LPIPS(net="alex", pnet_rand=True)
    _load_backbone([network.net], weights)
    return Perceptual("lpips", _FromZeroToOne(network), weights_identity(weights), device)


def make_dists(weights: Path, device: Any) -> Perceptual:
    """DISTS (Ding et al. 2020) on VGG16; its two vectors come with torchmetrics."""
    from torchmetrics.functional.image import dists
    from torchvision.models import vgg16

    # The library offers no network without a download of its own: its backbone is ours for a moment.
    original, dists.vgg16 = dists.vgg16, lambda weights=None: vgg16()
    try:
        network = dists.DISTSNetwork()
    finally:
        dists.vgg16 = original
    _load_backbone([getattr(network, f"stage{number}") for number in range(1, 6)], weights)
    return Perceptual("dists", network, weights_identity(weights), device)


class _FromZeroToOne(torch.nn.Module):
    """LPIPS for pictures from 0 to 1: the library's network wants to be told."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """The distance, (1, 1, 1, 1)."""
        distance: torch.Tensor = self.network(a, b, normalize=True)
        return distance


def surroundings(masked_region: BoolArray) -> tuple[slice, slice]:
    """The hole's bounding box, grown to `LEAST` pixels a side as far as the picture reaches."""
    rows, columns = (np.flatnonzero(masked_region.any(axis=axis)) for axis in (1, 0))
    return _grown(rows, masked_region.shape[0]), _grown(columns, masked_region.shape[1])


def _grown(used: NDArray[np.intp], length: int) -> slice:
    first, last = int(used[0]), int(used[-1]) + 1
    missing = max(0, LEAST - (last - first))
    first = max(0, min(first - missing // 2, length - LEAST))
    return slice(first, min(length, max(last, first + LEAST)))


def _load_backbone(parts: Sequence[torch.nn.Module], weights: Path) -> None:
    """Give the convolutions in `parts`, in order, the `features` of a torchvision state dict."""
    state = torch.load(weights, map_location="cpu", weights_only=True)
    given = [(state[f"{name}.weight"], state[f"{name}.bias"]) for name in _feature_layers(state)]
    layers = [layer for part in parts for layer in part.modules() if isinstance(layer, torch.nn.Conv2d)]
    for layer, (weight, bias) in zip(layers, given, strict=True):
        layer.load_state_dict({"weight": weight, "bias": bias})


def _feature_layers(state: dict[str, torch.Tensor]) -> list[str]:
    names = {key.rpartition(".")[0] for key in state if key.startswith("features.")}
    return sorted(names, key=lambda name: int(name.rpartition(".")[2]))
