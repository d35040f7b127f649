"""Scores by CLIP networks: match with the caption, appearance, and human preference. Uses transformers.

Networks are directories in the layout of transformers. All scores are for the whole image.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fluxexp.arrays import ImageArray
from fluxexp.errors import ConfigError, Problem
from fluxexp.metrics.case import Case, MetricScores
from fluxexp.metrics.full.batcher import Batcher
from fluxexp.metrics.full.metric_weights import weights_identity
from fluxexp.metrics.full.result_cache import ResultCache, image_digest

IQA_PROMPTS = ("Good photo.", "Bad photo.")
"""The prompts of CLIP-IQA (Wang et al. 2023)."""


class Clip:
    """A CLIP network. Embeddings are float32 tensors of shape (dimension,) with unit length.

    Thread-safe: images of several threads go through the network in one batch (`Batcher`), texts one at a time.

    Raises:
        ConfigError: the files lack tensors.
    """

    def __init__(self, path: Path, device: Any) -> None:
        from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

        model, info = CLIPModel.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True, use_safetensors=True, trust_remote_code=False
        )
        if missing := sorted(map(str, info["missing_keys"])):  # they have random values
            reason = f"is a CLIP model without {len(missing)} of its tensors ({', '.join(missing[:3])})"
            raise ConfigError(Problem("metrics.weights", reason, str(path), "download the model again"))
        self._model = model.to(device).eval().requires_grad_(False)
        self._processor = CLIPImageProcessorPil.from_pretrained(path)
        self._tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        self._length = self._model.config.text_config.max_position_embeddings
        self._device = device
        self._lock = threading.Lock()
        self._embeddings = Batcher(self._of_pixels, device)
        self.of_image = ResultCache(self._of_image, image_digest)
        """Embedding of an image, uint8 RGB of any size. The processor resizes and crops it for the network."""
        self.of_text = ResultCache(self._of_text, str)
        """Embedding of a text. A text that is too long for the network is truncated."""
        self.identity = weights_identity(path)
        self.dimension = int(self._model.config.projection_dim)
        self.logit_scale = float(self._model.logit_scale.exp())

    def _of_image(self, pixels: ImageArray) -> torch.Tensor:
        inputs = self._processor(images=Image.fromarray(pixels), return_tensors="pt")
        return self._embeddings(inputs["pixel_values"][0])

    def _of_pixels(self, pixel_values: torch.Tensor) -> torch.Tensor:
        with self._lock:
            pooled = self._model.vision_model(pixel_values=pixel_values).pooler_output
            return _unit(self._model.visual_projection(pooled))

    @torch.inference_mode()
    def _of_text(self, text: str) -> torch.Tensor:
        with self._lock:  # tokenizers store truncation settings, so they are not thread-safe
            tokens = self._tokenizer(text, truncation=True, max_length=self._length, return_tensors="pt")
            inputs = {name: tokens[name].to(self._device) for name in ("input_ids", "attention_mask")}
            return _unit(self._model.text_projection(self._model.text_model(**inputs).pooler_output))[0]


class ClipScore:
    """Match of image and caption: 100 max(cos, 0) (Hessel et al. 2021, with the scale of torchmetrics)."""

    names: Sequence[str] = ("clip_score",)

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self.identity = clip.identity

    def score(self, case: Case) -> MetricScores:
        """A score from 0 to 100; None without a caption."""
        cosine = _cosine(self._clip, case)
        return {"clip_score": None if cosine is None else 100 * max(0.0, cosine)}


class ClipIqa:
    """CLIP-IQA: whether an image is more like a good photo than like a bad one (Wang et al. 2023).

    The score is a softmax over the two cosines, multiplied by the network's logit scale, as in torchmetrics for
    OpenAI's CLIP networks. The paper removes positional embeddings to support other image sizes; here the image is
    resized.
    """

    names: Sequence[str] = ("clip_iqa",)

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self._prompts = torch.stack([clip.of_text(text) for text in IQA_PROMPTS])
        self.identity = clip.identity

    def score(self, case: Case) -> MetricScores:
        """A score from 0 to 1."""
        logits = self._clip.logit_scale * (self._prompts @ self._clip.of_image(case.result))
        return {"clip_iqa": float(logits.softmax(0)[0])}


class Aesthetic:
    """LAION's predictor of human aesthetic ratings, on a CLIP embedding (Schuhmann et al. 2022).

    Raises:
        ConfigError: the predictor needs embeddings of another length.
    """

    names: Sequence[str] = ("aesthetic",)

    def __init__(self, clip: Clip, head: Path) -> None:
        self._clip = clip
        self._head = read_head(head)
        self.identity = f"{clip.identity} {weights_identity(head)}"
        if self._head[0].in_features != clip.dimension:
            reason = f"needs embeddings of {self._head[0].in_features} values, but those of clip have {clip.dimension}"
            hint = "set metrics.weights.clip to the CLIP of the predictor (LAION's: openai/clip-vit-large-patch14)"
            raise ConfigError(Problem("metrics.weights.aesthetic", reason, str(head), hint))

    def score(self, case: Case) -> MetricScores:
        """A score from about 1 to 10."""
        return {"aesthetic": float(self._head(self._clip.of_image(case.result).cpu()))}


class Preference:
    """100 cos(image, caption) of a CLIP network that was trained on human preferences.

    For PickScore (Kirstain et al. 2023), 100 is the logit scale. The authors of HPS v2 (Wu et al. 2023) report the
    cosine.
    """

    def __init__(self, name: str, clip: Clip) -> None:
        self._clip = clip
        self.names: Sequence[str] = (name,)
        self.identity = clip.identity

    def score(self, case: Case) -> MetricScores:
        """A score of about 15 to 35; None without a caption."""
        cosine = _cosine(self._clip, case)
        return {self.names[0]: None if cosine is None else 100 * cosine}


def read_head(path: Path) -> torch.nn.Sequential:
    """Read a sequence of linear layers from a state dict with keys `layers.NUMBER.weight` and `layers.NUMBER.bias`."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    names = sorted({key.rpartition(".")[0] for key in state}, key=lambda name: int(name.rpartition(".")[2]))
    layers = []
    for name in names:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers.append(layer)
    return torch.nn.Sequential(*layers).eval().requires_grad_(False)


def _cosine(clip: Clip, case: Case) -> float | None:
    """Cosine of the embeddings of image and caption; None without a caption."""
    return float(clip.of_image(case.result) @ clip.of_text(case.prompt)) if case.prompt.strip() else None


def _unit(embeddings: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(embeddings.float(), dim=-1)
