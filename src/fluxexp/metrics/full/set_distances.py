"""Distances between sets of pictures, of the features of each: FID, KID, CMMD. Knows neither pictures nor networks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from fluxexp.arrays import FeatureArray

LEAST = 8
"""Pictures of each set below which no distance is given."""
KID_SUBSET = 1000
CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0
_ROWS = 1024


def set_scores(metrics: Sequence[str], made: FeatureArray, real: FeatureArray) -> Mapping[str, float]:
    """Distances `metrics` between pictures made, (N, D), and real ones, (M, D), float32.

    Nothing where either are too few (`too_few`). What is real and given more than once, as several results have the
    same truth, counts once.
    """
    if too_few(made, real):
        return {}
    a, b = torch.from_numpy(made).double(), torch.from_numpy(np.unique(real, axis=0)).double()
    return {name: _DISTANCES[name](a, b) for name in metrics}


def too_few(made: FeatureArray, real: FeatureArray) -> str | None:
    """Why there are no distances between these sets; None where there are."""
    numbers = len(made), len(np.unique(real, axis=0))
    if min(numbers) >= LEAST:
        return None
    return f"there are {numbers[0]} results and {numbers[1]} truths, and it takes {LEAST} of each"


def _fid(made: torch.Tensor, real: torch.Tensor) -> float:
    """Frechet distance of two Gaussians with the sets' means and covariances (Heusel et al. 2017).

    |m - n|^2 + tr(A + B - 2 (A B)^(1/2)). With A = X'X and B = Y'Y the last trace is the sum of the singular values of
    X Y', and QR leaves at most D rows of each: no root of a singular matrix, and no minute for 2048 features of few
    pictures, as the eigenvalues of A B take (torchmetrics).
    """
    means = made.mean(0), real.mean(0)
    x, y = ((rows - mean) / (len(rows) - 1) ** 0.5 for rows, mean in zip((made, real), means, strict=True))
    triangles = [torch.linalg.qr(part, mode="r").R for part in (x, y)]
    root = torch.linalg.svdvals(triangles[0] @ triangles[1].T).sum()
    distance = (means[0] - means[1]).square().sum() + x.square().sum() + y.square().sum() - 2 * root
    return max(0.0, float(distance))


def _kid(made: torch.Tensor, real: torch.Tensor) -> float:
    """Unbiased MMD^2 with a cubic kernel (Binkowski et al. 2018), times 1000; the mean over subsets, drawn alike."""
    from torchmetrics.image.kid import KernelInceptionDistance

    subset = min(KID_SUBSET, len(made), len(real))
    subsets = 1 if subset == len(made) == len(real) else 100
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)  # that it keeps all features, which are here anyway
        metric = KernelInceptionDistance(feature=_AsTheyAre(made.shape[1]), subsets=subsets, subset_size=subset)
        torch.manual_seed(0)
        metric.update(made, real=False)
        metric.update(real, real=True)
        return 1000 * float(metric.compute()[0])


class _AsTheyAre(torch.nn.Module):
    """Stands for the network in torchmetrics, which is given features instead of pictures."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """`features`."""
        return features


def _cmmd(made: torch.Tensor, real: torch.Tensor) -> float:
    """MMD^2 of CLIP embeddings with a Gaussian kernel, times 1000 (Jayasumana et al. 2024).

    The estimate with a set's pairs of the same picture, as the authors' program has it: at least 0, and above it for
    few pictures even of the same kind.
    """

    def kernel_mean(x: torch.Tensor, y: torch.Tensor) -> float:
        parts = (x[first : first + _ROWS] for first in range(0, len(x), _ROWS))
        rows = [torch.exp(-torch.cdist(part, y).square() / (2 * CMMD_SIGMA**2)).sum() for part in parts]
        return float(torch.stack(rows).sum()) / (len(x) * len(y))

    return CMMD_SCALE * (kernel_mean(made, made) + kernel_mean(real, real) - 2 * kernel_mean(made, real))


_DISTANCES = {"fid": _fid, "kid": _kid, "cmmd": _cmmd}
