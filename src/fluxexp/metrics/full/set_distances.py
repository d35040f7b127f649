"""Distances between two sets of images, from the features of the images: FID, KID, CMMD."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from fluxexp.arrays import FeatureArray

MIN_IMAGES = 8
"""Smallest number of images in each set."""
KID_SUBSET = 1000
CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0
_ROWS = 1024


def set_scores(metrics: Sequence[str], made: FeatureArray, real: FeatureArray) -> Mapping[str, float]:
    """Compute the distances `metrics` between the features of results, (N, D), and of ground truths, (M, D).

    Several results can share a ground truth, so equal rows of `real` count once. Returns an empty mapping if a set is
    too small (`too_few`).
    """
    if too_few(made, real):
        return {}
    a, b = torch.from_numpy(made).double(), torch.from_numpy(np.unique(real, axis=0)).double()
    return {name: _DISTANCES[name](a, b) for name in metrics}


def too_few(made: FeatureArray, real: FeatureArray) -> str | None:
    """Why these sets are too small for a distance; None if they are not."""
    num_made, num_real = len(made), len(np.unique(real, axis=0))
    if min(num_made, num_real) >= MIN_IMAGES:
        return None
    return f"there are {num_made} results and {num_real} ground truths, but at least {MIN_IMAGES} of each are needed"


def _fid(made: torch.Tensor, real: torch.Tensor) -> float:
    """Frechet distance of two Gaussians with the means and covariances of the sets (Heusel et al. 2017).

    The distance is |m - n|^2 + tr(A + B - 2 (A B)^(1/2)) for means m, n and covariances A, B. With A = X'X and
    B = Y'Y, tr (A B)^(1/2) is the sum of the singular values of X Y'. A QR decomposition reduces X and Y to at most D
    rows. So no root of a singular matrix is needed, and 2048 features of few images are fast. The eigenvalues of A B,
    which torchmetrics computes, would take about a minute.
    """
    means = made.mean(0), real.mean(0)
    x, y = ((rows - mean) / (len(rows) - 1) ** 0.5 for rows, mean in zip((made, real), means, strict=True))
    triangles = [torch.linalg.qr(part, mode="r").R for part in (x, y)]
    root = torch.linalg.svdvals(triangles[0] @ triangles[1].T).sum()
    distance = (means[0] - means[1]).square().sum() + x.square().sum() + y.square().sum() - 2 * root
    return max(0.0, float(distance))


def _kid(made: torch.Tensor, real: torch.Tensor) -> float:
    """Unbiased MMD^2 with a cubic kernel (Binkowski et al. 2018), times 1000. Mean over subsets with a fixed seed."""
    from torchmetrics.image.kid import KernelInceptionDistance

    subset = min(KID_SUBSET, len(made), len(real))
    subsets = 1 if subset == len(made) == len(real) else 100
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)  # torchmetrics warns about the memory of the features
        metric = KernelInceptionDistance(feature=_Identity(made.shape[1]), subsets=subsets, subset_size=subset)
        torch.manual_seed(0)
        metric.update(made, real=False)
        metric.update(real, real=True)
        return 1000 * float(metric.compute()[0])


class _Identity(torch.nn.Module):
    """Replaces the network in torchmetrics, because the inputs are already features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return `features`."""
        return features


def _cmmd(made: torch.Tensor, real: torch.Tensor) -> float:
    """MMD^2 of CLIP embeddings with a Gaussian kernel, times 1000 (Jayasumana et al. 2024).

    This is the biased estimate, which includes pairs of an image with itself, as in the authors' program. It is never
    negative, and it is above 0 for small sets of the same distribution.
    """

    # Computed for _ROWS rows at a time, to limit the memory of the kernel matrix.
    def kernel_mean(x: torch.Tensor, y: torch.Tensor) -> float:
        parts = (x[first : first + _ROWS] for first in range(0, len(x), _ROWS))
        rows = [torch.exp(-torch.cdist(part, y).square() / (2 * CMMD_SIGMA**2)).sum() for part in parts]
        return float(torch.stack(rows).sum()) / (len(x) * len(y))

    return CMMD_SCALE * (kernel_mean(made, made) + kernel_mean(real, real) - 2 * kernel_mean(made, real))


_DISTANCES = {"fid": _fid, "kid": _kid, "cmmd": _cmmd}
