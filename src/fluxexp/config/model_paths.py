"""What `model.path` names: a directory, a model that comes with fluxexp, or a repository of the hub."""

from __future__ import annotations

from pathlib import Path

EMBEDDED = "embedded:"
EMBEDDED_MODELS = ("tiny_dev", "tiny_fill")
_SHIPPED = Path(__file__).parents[1] / "embedded"


def model_directory(path: str) -> Path | None:
    """The directory that `path` names, or None if it is a hub id or names nothing."""
    if path.startswith(EMBEDDED):
        name = path.removeprefix(EMBEDDED)
        return _SHIPPED / name if name in EMBEDDED_MODELS else None
    local = Path(path).expanduser()
    return local if local.is_dir() else None
