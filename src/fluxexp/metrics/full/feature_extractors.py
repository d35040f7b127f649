"""Features of single images, for distances between sets of images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from fluxexp.arrays import FeatureArray, ImageArray
from fluxexp.metrics.full.batcher import Batcher
from fluxexp.metrics.full.clip import Clip
from fluxexp.metrics.full.metric_weights import weights_identity
from fluxexp.metrics.full.result_cache import ResultCache, image_digest


class Extractor(Protocol):
    """Computes features of single images."""

    @property
    def name(self) -> str:
        """Name of the features, which contains the identity of the weights. It can be a part of a directory's name."""
        ...

    @property
    def metrics(self) -> Sequence[str]:
        """Distances that use these features."""
        ...

    def features(self, pixels: ImageArray) -> FeatureArray:
        """Features of one image (RGB, any size), of shape (dimension,). Thread-safe."""
        ...


class InceptionFeatures:
    """The 2048 pool3 features of the Inception v3 network that defines FID, computed by torch-fidelity."""

    def __init__(self, weights: Path, metrics: Sequence[str], device: Any) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self._network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=_safe_state_dict(weights)
        ).to(device)
        self.name = f"inception-{weights_identity(weights)}"
        self.metrics = metrics
        self._batched = Batcher(lambda images: self._network(images)[0], device)
        self._cached = ResultCache(self._compute, image_digest)

    def features(self, pixels: ImageArray) -> FeatureArray:
        """Features of shape (2048,)."""
        return self._cached(pixels)

    def _compute(self, pixels: ImageArray) -> FeatureArray:
        found: FeatureArray = self._batched(torch.from_numpy(np.array(pixels)).permute(2, 0, 1)).float().cpu().numpy()
        return found


class ClipFeatures:
    """The CLIP embedding of an image, with unit length."""

    def __init__(self, clip: Clip) -> None:
        self.name = f"clip-{clip.identity}"
        self.metrics: Sequence[str] = ("cmmd",)
        self._clip = clip

    def features(self, pixels: ImageArray) -> FeatureArray:
        """Features of shape (dimension of the embedding,)."""
        found: FeatureArray = self._clip.of_image(pixels).cpu().numpy()
        return found


def _safe_state_dict(weights: Path) -> io.BytesIO:
    """A copy of the state dict in `weights` that contains only tensors. The library would execute code in the file."""
    buffer = io.BytesIO()
    torch.save(torch.load(weights, map_location="cpu", weights_only=True), buffer)
    buffer.seek(0)
    return buffer
