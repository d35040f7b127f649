"""Whether files hold the weights that they are given for: a wrong one should be known before images are made.

Goes by names of tensors, which are in the first part of a file of torch's or of safetensors'. Imports neither.
"""

from __future__ import annotations

import json
from pathlib import Path

_NAMES_END = 1 << 20
"""Bytes from which on a file has values alone: its names come first."""
_NAMES: dict[str, tuple[str, ...]] = {
    "alexnet": ("features.3.weight", "features.8.bias"),  # VGG has convolutions at other places
    "vgg16": ("features.2.weight", "features.28.bias"),
    "inception": ("Conv2d_1a_3x3.conv.weight", "Mixed_7c.branch_pool.conv.weight"),
    "aesthetic": ("layers.0.weight", "layers.0.bias"),
}
_FOREIGN: dict[str, tuple[str, str]] = {
    "inception": ("AuxLogits.", "is torchvision's Inception v3, and FID is defined on torch-fidelity's"),
    "aesthetic": ("features.0.weight", "is a network, not a predictor's layers"),
}


def what_is_wrong_with_file(key: str, path: Path) -> str | None:
    """Why `path` does not hold what `metrics.weights.KEY` should; None if it seems to."""
    try:
        with path.open("rb") as stream:
            names = stream.read(_NAMES_END)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    foreign, reason = _FOREIGN.get(key, ("", ""))
    if foreign and foreign.encode() in names:
        return reason
    missing = [name for name in _NAMES[key] if name.encode() not in names]
    return f"holds no {missing[0]}" if missing else None


def what_is_wrong_with_model(path: Path) -> str | None:
    """Why `path` is no directory with a CLIP in the layout of transformers; None if it seems to be."""
    if not path.is_dir():
        return "is a file, and a directory in the layout of transformers is needed"
    try:
        kind = json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type")
    except FileNotFoundError:
        return "holds no config.json"
    except (OSError, ValueError, AttributeError) as error:
        return f"has a damaged config.json ({error})"
    if kind != "clip":
        return f"is of the type {kind}, not clip"
    needed = {"safetensors": "*.safetensors", "preprocessor_config.json": "preprocessor_config.json"}
    missing = [name for name, pattern in needed.items() if not any(path.glob(pattern))]
    if not any((path / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        missing.append("tokenizer")
    return f"holds no {missing[0]}" if missing else None
