"""Features of single pictures, for distances between sets of them."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from fluxexp.arrays import FeatureArray, ImageArray
from fluxexp.metrics.full.clip import Clip
from fluxexp.metrics.full.metric_weights import weights_identity
from fluxexp.metrics.full.recent_results import RecentResults, content_of


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

    def features(self, pixels: ImageArray) -> FeatureArray:
        """Of one picture, uint8 RGB of any size: (dimension,). May be called from several threads."""
        ...


class InceptionFeatures:
    """The pool3 features of the Inception v3 that FID is defined on, by torch-fidelity: 2048 of them."""

    def __init__(self, weights: Path, metrics: Sequence[str], device: Any) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        self._network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=_harmless(weights)
        ).to(device)
        self.name = f"inception-{weights_identity(weights)}"
        self.metrics = metrics
        self._device = device
        self._lock = threading.Lock()
        self._recent = RecentResults(self._take, content_of)

    def features(self, pixels: ImageArray) -> FeatureArray:
        """(2048,)."""
        return self._recent(pixels)

    @torch.inference_mode()
    def _take(self, pixels: ImageArray) -> FeatureArray:
        picture = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None]
        with self._lock:
            found: FeatureArray = self._network(picture.to(self._device))[0][0].float().cpu().numpy()
        return found


class ClipFeatures:
    """CLIP's embedding of the picture, of unit length."""

    def __init__(self, clip: Clip) -> None:
        self.name = f"clip-{clip.identity}"
        self.metrics: Sequence[str] = ("cmmd",)
        self._clip = clip

    def features(self, pixels: ImageArray) -> FeatureArray:
        """(projection dimension,)."""
        found: FeatureArray = self._clip.of_picture(pixels).cpu().numpy()
        return found


def _harmless(weights: Path) -> io.BytesIO:
    """The state dict in `weights`, read as nothing but tensors: the library would run whatever a file says."""
    buffer = io.BytesIO()
    torch.save(torch.load(weights, map_location="cpu", weights_only=True), buffer)
    buffer.seek(0)
    return buffer
