"""Perceptual distances between two images: LPIPS and DISTS, by torchmetrics with backbones of torchvision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fluxexp.arrays import BoolArray, ImageArray
from fluxexp.metrics.case import Case, MetricScores
from fluxexp.metrics.full.batcher import Batcher
from fluxexp.metrics.full.metric_weights import weights_identity

MIN_BOX = 64
"""Smallest side of the compared box in pixels. A smaller masked region is compared with its surroundings."""
MIN_SIDE = 32
"""Smallest side of an image in pixels. AlexNet's pooling leaves nothing of smaller images."""


class Perceptual:
    """A perceptual distance, for results and ground truths or for results and references. Thread-safe."""

    def __init__(self, name: str, network: Any, identity: str, device: Any) -> None:
        self.names: Sequence[str] = (name,)
        self.identity = identity
        self._network = network.to(device).eval()
        self._distances = Batcher(lambda a, b: self._network(a, b).reshape(len(a)), device)

    def score(self, case: Case) -> MetricScores:
        """Distance from the ground truth around the masked region."""
        if case.truth is None or case.masked_region is None or not case.masked_region.any():
            return dict.fromkeys(self.names)
        box = context_box(case.masked_region)
        return {self.names[0]: self.distance(case.result[box], case.truth[box])}

    def distance(self, a: ImageArray, b: ImageArray) -> float | None:
        """Distance between two images of the same size; None if a side is shorter than `MIN_SIDE`."""
        if min(a.shape[:2]) < MIN_SIDE:
            return None
        return float(self._distances(_tensor(a), _tensor(b)))


def _tensor(pixels: ImageArray) -> torch.Tensor:
    """float32 of shape (3, height, width), values from 0 to 1."""
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 255


class ReferenceDistance:
    """A perceptual distance from the result of the reference run."""

    def __init__(self, name: str, metric: Perceptual) -> None:
        self.names: Sequence[str] = (name,)
        self.identity = metric.identity
        self._metric = metric

    def measure(self, case: Case, reference: ImageArray) -> MetricScores:
        """Distance around the masked region, or of the whole image without a masked region."""
        if case.masked_region is not None and not case.masked_region.any():
            return dict.fromkeys(self.names)
        box = (slice(None), slice(None)) if case.masked_region is None else context_box(case.masked_region)
        return {self.names[0]: self._metric.distance(case.result[box], reference[box])}


def make_lpips(weights: Path, device: Any) -> Perceptual:
    """LPIPS (Zhang et al. 2018) with AlexNet from `weights`. torchmetrics contains the linear layers."""
    from torchmetrics.functional.image.lpips import _LPIPS

    network = _LPIPS(net="alex", pnet_rand=True)
    _load_backbone([network.net], weights)
    return Perceptual("lpips", _UnitRangeLpips(network), weights_identity(weights), device)


def make_dists(weights: Path, device: Any) -> Perceptual:
    """DISTS (Ding et al. 2020) with VGG16 from `weights`. torchmetrics contains its two weight vectors."""
    from torchmetrics.functional.image import dists
    from torchvision.models import vgg16

    # The library always downloads its backbone, so replace the constructor of the backbone temporarily.
    original, dists.vgg16 = dists.vgg16, lambda weights=None: vgg16()
    try:
        network = dists.DISTSNetwork()
    finally:
        dists.vgg16 = original
    _load_backbone([getattr(network, f"stage{number}") for number in range(1, 6)], weights)
    return Perceptual("dists", network, weights_identity(weights), device)


class _UnitRangeLpips(torch.nn.Module):
    """LPIPS for values from 0 to 1. The network of the library expects -1 to 1 by default."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """The distances, of shape (number, 1, 1, 1)."""
        distance: torch.Tensor = self.network(a, b, normalize=True)
        return distance


def context_box(masked_region: BoolArray) -> tuple[slice, slice]:
    """Bounding box of the masked region, enlarged to `MIN_BOX` pixels per side if the image is large enough."""
    rows, columns = (np.flatnonzero(masked_region.any(axis=axis)) for axis in (1, 0))
    return _grow_to_minimum(rows, masked_region.shape[0]), _grow_to_minimum(columns, masked_region.shape[1])


def _grow_to_minimum(used: NDArray[np.intp], length: int) -> slice:
    first, last = int(used[0]), int(used[-1]) + 1
    missing = max(0, MIN_BOX - (last - first))
    first = max(0, min(first - missing // 2, length - MIN_BOX))
    return slice(first, min(length, max(last, first + MIN_BOX)))


def _load_backbone(parts: Sequence[torch.nn.Module], weights: Path) -> None:
    """Load the layers `features` of a torchvision state dict into the convolutions of `parts`, in order."""
    state = torch.load(weights, map_location="cpu", weights_only=True)
    given = [(state[f"{name}.weight"], state[f"{name}.bias"]) for name in _feature_layers(state)]
    layers = [layer for part in parts for layer in part.modules() if isinstance(layer, torch.nn.Conv2d)]
    for layer, (weight, bias) in zip(layers, given, strict=True):
        layer.load_state_dict({"weight": weight, "bias": bias})


def _feature_layers(state: dict[str, torch.Tensor]) -> list[str]:
    names = {key.rpartition(".")[0] for key in state if key.startswith("features.")}
    return sorted(names, key=lambda name: int(name.rpartition(".")[2]))
