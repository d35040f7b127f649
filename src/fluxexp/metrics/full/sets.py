"""Distances between sets of pictures: FID and KID by torchmetrics, CMMD. Of features taken picture by picture."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fluxexp.metrics.case import Pixels
from fluxexp.metrics.full.clip import Clip

Features = NDArray[np.float32]

LEAST = 8
"""Pictures below which no distance between sets is given."""
KID_SUBSET = 1000
CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0
_ROWS = 1024


class Extractor(Protocol):
    """Takes features of single pictures for distances between sets."""

    @property
    def name(self) -> str:
        """Of the features, with what tells apart those of other weights: fit for a directory's name."""
        ...

    @property
    def metrics(self) -> Sequence[str]:
        """Distances that its features are for."""
        ...

    def features(self, pixels: Pixels) -> Features:
        """Of one picture, uint8 RGB of any size: (dimension,). May be called from several threads."""
        ...


class InceptionFeatures:
    """The pool3 features of the Inception v3 that FID is defined on, by torch-fidelity: 2048 of them."""

    def __init__(self, weights: Path, metrics: Sequence[str], device: Any) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self._network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
        ).to(device)
        self.name = f"inception-{weights.stem}"
        self.metrics = metrics
        self._device = device
        self._lock = threading.Lock()

    @torch.inference_mode()
    def features(self, pixels: Pixels) -> Features:
        """(2048,)."""
        picture = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].to(self._device)
        with self._lock:
            found: Features = self._network(picture)[0][0].float().cpu().numpy()
        return found


class ClipFeatures:
    """CLIP's embedding of the picture."""

    def __init__(self, clip: Clip) -> None:
        self.name = f"clip-{clip.identity}"
        self.metrics: Sequence[str] = ("cmmd",)
        self._clip = clip

    def features(self, pixels: Pixels) -> Features:
        """(projection dimension,)."""
        found: Features = self._clip.of_picture(pixels).cpu().numpy()
        return found


def set_scores(metrics: Sequence[str], made: Features, real: Features) -> Mapping[str, float]:
    """Distances `metrics` between pictures made, (N, D), and real ones, (M, D). Nothing below `LEAST` of either."""
    if min(len(made), len(real)) < LEAST:
        return {}
    a, b = torch.from_numpy(made), torch.from_numpy(real)
    return {name: _DISTANCES[name](a, b) for name in metrics}


class _AsTheyAre(torch.nn.Module):
    """Stands for the network in torchmetrics, which is given features instead of pictures."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """`features`."""
        return features


def _fid(made: torch.Tensor, real: torch.Tensor) -> float:
    """Frechet distance of two Gaussians (Heusel et al. 2017)."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_AsTheyAre(made.shape[1])).set_dtype(torch.float64)
    metric.update(made.double(), real=False)
    metric.update(real.double(), real=True)
    return float(metric.compute())


def _kid(made: torch.Tensor, real: torch.Tensor) -> float:
    """Unbiased MMD^2 with a cubic kernel (Binkowski et al. 2018), times 1000; the mean over subsets."""
    from torchmetrics.image.kid import KernelInceptionDistance

    subset = min(KID_SUBSET, len(made), len(real))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)  # that it keeps all features, which are here anyway
        metric = KernelInceptionDistance(feature=_AsTheyAre(made.shape[1]), subset_size=subset)
        torch.manual_seed(0)
        metric.update(made, real=False)
        metric.update(real, real=True)
        return 1000 * float(metric.compute()[0])


def _cmmd(made: torch.Tensor, real: torch.Tensor) -> float:
    """MMD^2 of CLIP embeddings with a Gaussian kernel, times 1000 (Jayasumana et al. 2024); biased, so at least 0."""

    def kernel_mean(x: torch.Tensor, y: torch.Tensor) -> float:
        parts = (x[first : first + _ROWS] for first in range(0, len(x), _ROWS))
        rows = [torch.exp(-torch.cdist(part, y).square() / (2 * CMMD_SIGMA**2)).sum() for part in parts]
        return float(torch.stack(rows).sum()) / (len(x) * len(y))

    a, b = made.double(), real.double()
    return CMMD_SCALE * (kernel_mean(a, a) + kernel_mean(b, b) - 2 * kernel_mean(a, b))


_DISTANCES = {"fid": _fid, "kid": _kid, "cmmd": _cmmd}
