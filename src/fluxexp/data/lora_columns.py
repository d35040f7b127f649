"""The columns `lora` and `lora_scale` of tables: the LoRA of a sample."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from fluxexp.config import model_paths
from fluxexp.config.lora_files import lora_header
from fluxexp.config.weight_headers import ComponentError
from fluxexp.data.file_access import AllowedFolders
from fluxexp.data.paths import expanded, is_url
from fluxexp.data.row import Row
from fluxexp.errors import SampleError
from fluxexp.records import SampleLora

MAX_SCALE = 100.0


def sample_lora(row: Row, folder: Path) -> SampleLora | None:
    """The LoRA of a row; relative paths start at `folder`. None if the row has none, or has a value that is wrong."""
    try:
        return _read(row, folder, "")
    except SampleError:  # `require_lora` raises it again when the sample is loaded
        return None


def lora_file(row: Row, folder: Path) -> Path | None:
    """The file that the column `lora` names, whether it exists or not."""
    lora = sample_lora(row, folder)
    return None if lora is None or lora.path is None else model_paths.lora_file(lora.path)


def require_lora(row: Row, folder: Path, allowed: AllowedFolders, where: str) -> None:
    """Check the LoRA of a row.

    Raises:
        SampleError: a value is wrong, or the file is missing, damaged, no LoRA, or outside of the allowed folders.
    """
    lora = _read(row, folder, where)
    if lora is None or lora.path is None:
        return
    if not lora.path.startswith(model_paths.EMBEDDED):
        allowed.require(Path(lora.path))
    try:
        lora_header(lora.path)
    except ComponentError as error:
        raise SampleError(f"{where}: lora {lora.path} {error}; {error.hint}") from None


def _read(row: Row, folder: Path, where: str) -> SampleLora | None:
    path, scale = row.get("lora"), row.get("lora_scale")
    if path is not None and (not isinstance(path, str) or is_url(path)):
        raise SampleError(f"{where}: lora {path!r} is not the path of a file; write the path of a .safetensors file")
    if path is None and scale is None:
        return None
    if path is not None and not path.startswith(model_paths.EMBEDDED):
        path = str(folder / expanded(path))
    return SampleLora(path, _scale(scale, where))


def _scale(value: Any, where: str) -> float | None:
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= MAX_SCALE:
        raise SampleError(f"{where}: lora_scale {value!r} is not a number from {-MAX_SCALE:g} to {MAX_SCALE:g}")
    return number
