"""Resolves `model.path` (a directory, a model embedded in fluxexp, or a hub id) and paths of LoRAs."""

from __future__ import annotations

from pathlib import Path

EMBEDDED = "embedded:"
EMBEDDED_MODELS = ("tiny_dev", "tiny_fill")
EMBEDDED_LORAS = ("tiny_control", "tiny_outlined", "tiny_pastel")
_SHIPPED = Path(__file__).parents[1] / "embedded"


def model_directory(path: str) -> Path | None:
    """Return the directory that `path` names, or None for a hub id or a path that does not exist."""
    if path.startswith(EMBEDDED):
        name = path.removeprefix(EMBEDDED)
        return _SHIPPED / name if name in EMBEDDED_MODELS else None
    local = Path(path).expanduser()
    return local if local.is_dir() else None


def lora_file(path: str) -> Path:
    """The file that a path of a LoRA names. It may not exist, for example if no embedded LoRA has the name."""
    name = path.removeprefix(EMBEDDED)
    if name != path and name in EMBEDDED_LORAS:  # other names could lead out of the folder
        return _SHIPPED / "loras" / f"{name}.safetensors"
    return Path(path).expanduser()
