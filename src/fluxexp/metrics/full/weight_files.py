"""Checks that files contain the expected weights, so that a wrong file is reported before a run makes images.

The check looks for names of tensors in the first part of a file, and reads the headers of safetensors. It needs neither
torch nor safetensors.
"""

from __future__ import annotations

import json
from pathlib import Path

from fluxexp.config.weight_headers import ComponentError, tensor_shapes

_NAMES_END = 1 << 20
"""Number of bytes to search. The names of tensors are at the start of a file, before the values."""
_NAMES: dict[str, tuple[str, ...]] = {
    "alexnet": ("features.3.weight", "features.8.bias"),  # VGG has convolutions at other positions
    "vgg16": ("features.2.weight", "features.28.bias"),
    "inception": ("Conv2d_1a_3x3.conv.weight", "Mixed_7c.branch_pool.conv.weight"),
    "aesthetic": ("layers.0.weight", "layers.0.bias"),
}
_FOREIGN: dict[str, tuple[str, str]] = {
    "inception": ("AuxLogits.", "is torchvision's Inception v3, but FID needs torch-fidelity's"),
    "aesthetic": ("features.0.weight", "is a whole network, but only the layers of the predictor are needed"),
}


def file_problem(key: str, path: Path) -> str | None:
    """Why the file `path` cannot be `metrics.weights.KEY`; None if no problem was found."""
    try:
        with path.open("rb") as stream:
            names = stream.read(_NAMES_END)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    foreign, reason = _FOREIGN.get(key, ("", ""))
    if foreign and foreign.encode() in names:
        return reason
    missing = [name for name in _NAMES[key] if name.encode() not in names]
    return f"does not contain {missing[0]}" if missing else None


def model_problem(path: Path) -> str | None:
    """Why `path` cannot be a CLIP model in the layout of transformers; None if no problem was found."""
    if not path.is_dir():
        return "is a file, not a directory in the layout of transformers"
    try:
        kind = json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type")
    except FileNotFoundError:
        return "does not contain config.json"
    except (OSError, ValueError, AttributeError) as error:
        return f"has a damaged config.json ({error})"
    if kind != "clip":
        return f"is a model of type {kind}, not clip"
    try:
        tensor_shapes(path, "model", None)
    except ComponentError as error:
        return f"cannot be loaded: {error}"
    missing = [] if (path / "preprocessor_config.json").is_file() else ["preprocessor_config.json"]
    if not any((path / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        missing.append("a tokenizer")
    return f"does not contain {missing[0]}" if missing else None
