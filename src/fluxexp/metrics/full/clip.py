"""What CLIP and its kin say of a picture: fit with the caption, look, and what people would prefer. By transformers."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fluxexp.metrics.case import Case, Pixels, Scores

IQA_PROMPTS = ("Good photo.", "Bad photo.")
"""Of CLIP-IQA (Wang et al. 2023)."""


class Clip:
    """A CLIP network in the layout of transformers. Embeddings are float32 of unit length, (dimension,)."""

    def __init__(self, path: Path, device: Any) -> None:
        from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

        self._model = CLIPModel.from_pretrained(path, dtype=torch.float32).to(device).eval().requires_grad_(False)
        self._processor = CLIPImageProcessorPil.from_pretrained(path)
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        self._length = self._model.config.text_config.max_position_embeddings
        self._device = device
        self._lock = threading.Lock()
        self.identity = path.name
        self.logit_scale = float(self._model.logit_scale.exp())

    @torch.inference_mode()
    def of_picture(self, pixels: Pixels) -> torch.Tensor:
        """Embedding of a picture, resized and cropped as the network wants it."""
        with self._lock:
            inputs = self._processor(images=Image.fromarray(pixels), return_tensors="pt").to(self._device)
            pooled = self._model.vision_model(pixel_values=inputs["pixel_values"]).pooler_output
            return _unit(self._model.visual_projection(pooled))

    @torch.inference_mode()
    def of_text(self, text: str) -> torch.Tensor:
        """Embedding of a text; what is too long for the network is cut off."""
        with self._lock:
            tokens = self._tokenizer(text, truncation=True, max_length=self._length, return_tensors="pt")
            inputs = {name: tokens[name].to(self._device) for name in ("input_ids", "attention_mask")}
            return _unit(self._model.text_projection(self._model.text_model(**inputs).pooler_output))


class ClipScores:
    """CLIPScore, CLIP-IQA and the aesthetic score, as far as they are asked for, of one embedding."""

    def __init__(self, clip: Clip, wanted: Sequence[str], head: Path | None) -> None:
        self.names: Sequence[str] = tuple(name for name in ("clip_score", "clip_iqa", "aesthetic") if name in wanted)
        self.identity = " ".join((clip.identity, head.name if head and "aesthetic" in self.names else "")).strip()
        self._clip = clip
        self._pair = torch.stack([clip.of_text(text) for text in IQA_PROMPTS]) if "clip_iqa" in self.names else None
        self._head = read_head(head) if head and "aesthetic" in self.names else None

    def score(self, case: Case) -> Scores:
        """Of the whole picture; without a caption there is no CLIPScore."""
        picture = self._clip.of_picture(case.result)
        scores: dict[str, float | None] = {}
        if "clip_score" in self.names:
            scores["clip_score"] = self._fit(picture, case.prompt)
        if self._pair is not None:
            # Softmax over the pair, as by torchmetrics' CLIP-IQA.
            logits = self._clip.logit_scale * (self._pair.to(picture) @ picture)
            scores["clip_iqa"] = float(logits.softmax(0)[0])
        if self._head is not None:
            scores["aesthetic"] = float(self._head(picture.cpu()))
        return scores

    def _fit(self, picture: torch.Tensor, prompt: str) -> float | None:
        """100 max(cos, 0) (Hessel et al. 2021, scaled as by torchmetrics)."""
        return 100 * max(0.0, float(picture @ self._clip.of_text(prompt))) if prompt.strip() else None


class Preference:
    """100 cos(picture, caption) of a CLIP that was tuned to what people prefer: PickScore (Kirstain et al. 2023),
    HPS v2 (Wu et al. 2023).
    """

    def __init__(self, name: str, path: Path, device: Any) -> None:
        self._clip = Clip(path, device)
        self.names: Sequence[str] = (name,)
        self.identity = self._clip.identity

    def score(self, case: Case) -> Scores:
        """Of the whole picture; None without a caption."""
        if not case.prompt.strip():
            return dict.fromkeys(self.names)
        value = 100 * float(self._clip.of_picture(case.result) @ self._clip.of_text(case.prompt))
        return {self.names[0]: value}


def read_head(path: Path) -> torch.nn.Sequential:
    """The aesthetic predictor on CLIP's embedding (LAION-Aesthetics, Schuhmann et al. 2022): linear layers in a row."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    names = sorted({key.rpartition(".")[0] for key in state}, key=lambda name: int(name.rpartition(".")[2]))
    layers = []
    for name in names:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers.append(layer)
    return torch.nn.Sequential(*layers).eval().requires_grad_(False)


def _unit(embeddings: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(embeddings.float(), dim=-1)[0]
