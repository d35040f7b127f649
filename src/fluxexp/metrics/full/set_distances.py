"""Distances between two sets of images, from the features of the images: FID, KID, CMMD.

Each distance has a 95 % interval from random halves of the samples (delete-half jackknife, Shao & Wu 1989): over the
halves, the distance has about the standard deviation that it has over repeated runs. A half has all images of a sample
and their ground truth, or none of them. The random halves have a fixed seed. The interval of FID says nothing about its
bias: FID is too high by an amount that depends on the number of images.

KID and CMMD are unbiased: pairs of images of the same sample are left out, because they are not independent. These are
an image with itself, a result with its own ground truth, and two results of one sample. So both can be below 0. The
authors' CMMD includes pairs of an image with itself, which makes it too high for few images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import special

from fluxexp.arrays import FeatureArray
from fluxexp.storage.feature_store import SetScore

MIN_IMAGES = 16
"""Smallest number of images in each set, for KID and CMMD."""
NUM_HALVES = 20
KID_SCALE = 1000.0
CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0
_ROWS = 1024
Kernel = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Sets:
    """Features of results (N, D) and of ground truths (M, D), with the sample of each row."""

    made: torch.Tensor
    real: torch.Tensor
    made_samples: torch.Tensor
    real_samples: torch.Tensor

    @classmethod
    def of(cls, made: FeatureArray, real: FeatureArray) -> _Sets:
        """Equal rows of `real` become one. If `made` has as many rows, row n of both belongs to the same sample."""
        unique, sample = np.unique(real, axis=0, return_inverse=True)
        samples = torch.arange(len(unique))
        is_paired = len(made) == len(real)
        made_samples = torch.from_numpy(sample.reshape(-1)) if is_paired else len(unique) + torch.arange(len(made))
        return cls(torch.from_numpy(made).double(), torch.from_numpy(unique).double(), made_samples, samples)

    def halves(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Which rows of both sets are in each random half."""
        generator = torch.Generator().manual_seed(0)
        samples = torch.unique(torch.cat([self.made_samples, self.real_samples]))
        chosen = []
        for _ in range(NUM_HALVES):
            half = samples[torch.randperm(len(samples), generator=generator)[: len(samples) // 2]]
            chosen.append((torch.isin(self.made_samples, half), torch.isin(self.real_samples, half)))
        return chosen


def set_scores(metrics: Sequence[str], made: FeatureArray, real: FeatureArray) -> Mapping[str, SetScore]:
    """Compute the distances `metrics` between the features of results, (N, D), and of ground truths, (M, D).

    Several results can share a ground truth, so equal rows of `real` count once. A metric for which a set is too small
    (`too_few`) is left out.
    """
    names = [name for name in metrics if too_few(name, made, real) is None]
    if not names:
        return {}
    sets = _Sets.of(made, real)
    halves = sets.halves()
    return {name: _with_interval(*_DISTANCES[name](sets, halves), is_squared=name == "fid") for name in names}


def too_few(metric: str, made: FeatureArray, real: FeatureArray) -> str | None:
    """Why these sets are too small for a distance; None if they are not.

    FID needs more images than features, because the covariances do not have full rank otherwise.
    """
    num_made, num_real = len(made), len(np.unique(real, axis=0))
    needed = max(MIN_IMAGES, made.shape[-1] + 1) if metric == "fid" else MIN_IMAGES
    if min(num_made, num_real) >= needed:
        return None
    return f"there are {num_made} results and {num_real} ground truths, but at least {needed} of each are needed"


def _with_interval(value: float, halves: Sequence[float], *, is_squared: bool) -> SetScore:
    """`is_squared`: whether the distance is never negative."""
    margin = float(special.stdtrit(len(halves) - 1, 0.975)) * float(np.std(halves, ddof=1))
    return SetScore(value, max(0.0, value - margin) if is_squared else value - margin, value + margin)


Halves = Sequence[tuple[torch.Tensor, torch.Tensor]]


def _fid(sets: _Sets, halves: Halves) -> tuple[float, list[float]]:
    return _frechet(sets.made, sets.real), [_frechet(sets.made[made], sets.real[real]) for made, real in halves]


def _frechet(made: torch.Tensor, real: torch.Tensor) -> float:
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


def _kid(sets: _Sets, halves: Halves) -> tuple[float, list[float]]:
    """MMD^2 with a cubic kernel, times 1000 (Binkowski et al. 2018). Over all images instead of random subsets."""

    def kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    return _mmd(sets, halves, kernel, KID_SCALE)


def _cmmd(sets: _Sets, halves: Halves) -> tuple[float, list[float]]:
    """MMD^2 of CLIP embeddings with a Gaussian kernel, times 1000 (Jayasumana et al. 2024)."""

    def kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.exp(-torch.cdist(x, y).square() / (2 * CMMD_SIGMA**2))

    return _mmd(sets, halves, kernel, CMMD_SCALE)


def _mmd(sets: _Sets, halves: Halves, kernel: Kernel, scale: float) -> tuple[float, list[float]]:
    """Unbiased MMD^2 (Gretton et al. 2012, lemma 6) between all rows, and between the rows of each half."""
    made, real = (
        torch.stack([torch.ones(len(rows)).double(), *(half[side].double() for half in halves)])
        for side, rows in enumerate((sets.made, sets.real))
    )
    x, y = (sets.made, sets.made_samples, made), (sets.real, sets.real_samples, real)
    values = scale * (_kernel_means(x, x, kernel) + _kernel_means(y, y, kernel) - 2 * _kernel_means(x, y, kernel))
    return float(values[0]), values[1:].tolist()


def _kernel_means(
    x: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    y: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    kernel: Kernel,
) -> torch.Tensor:
    """Mean of the kernel over all pairs of different samples, for each of H choices of rows: shape (H,).

    Args:
        x: features (N, D), samples (N,), and which rows are chosen (H, N), as 0 and 1.
        y: the same for the other set.
        kernel: of features (n, D) and (m, D): (n, m).
    """
    sums = torch.zeros(len(x[2]), dtype=torch.float64)
    numbers = torch.zeros_like(sums)
    for first in range(0, len(x[0]), _ROWS):  # for some rows at a time, to limit the memory of the kernel matrix
        rows = slice(first, first + _ROWS)
        differ = (x[1][rows, None] != y[1][None]).double()
        chosen = x[2][:, rows]
        sums += ((chosen @ (kernel(x[0][rows], y[0]) * differ)) * y[2]).sum(1)
        numbers += ((chosen @ differ) * y[2]).sum(1)
    return sums / numbers


_DISTANCES: Mapping[str, Callable[[_Sets, Halves], tuple[float, list[float]]]] = {
    "fid": _fid,
    "kid": _kid,
    "cmmd": _cmmd,
}
