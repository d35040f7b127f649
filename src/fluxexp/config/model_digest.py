"""`model.sha256`: one hash of all files that a model is loaded from, so that a changed file is never loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from fluxexp.config.checkpoint_files import model_files
from fluxexp.config.controlnet_files import controlnet_files
from fluxexp.config.file_hashes import file_contents
from fluxexp.config.fingerprint import loaded_files
from fluxexp.config.hub_directories import controlnet_place
from fluxexp.config.schema import FluxModelConfig
from fluxexp.errors import ConfigError, Problem


def model_digest(directory: Path, in_files: Mapping[str, Path] | None = None, controlnet: Path | None = None) -> str:
    """SHA-256, in hex, of the lines `HASH  NAME` of all loaded files, sorted by name, as `sha256sum` prints them.

    Args:
        directory: of the model.
        in_files: single files with components of the model. After the directory's files there is a line for each of
            these components, sorted, as `HASH  COMPONENT`: a file may be renamed.
        controlnet: directory of the ControlNet. Its files come last, as `HASH  controlnet/NAME`.

    Raises:
        OSError: a file cannot be read.
    """
    single = dict(sorted((in_files or {}).items()))
    files = loaded_files(directory, single)
    of_controlnet = [] if controlnet is None else controlnet_files(controlnet)
    contents = file_contents([*files, *single.values(), *of_controlnet])
    hashes = [content.partition("-")[2] for content in contents]
    names = [*(file.relative_to(directory).as_posix() for file in files), *single]
    names += [f"controlnet/{file.name}" for file in of_controlnet]
    lines = "".join(f"{digest}  {name}\n" for digest, name in zip(hashes, names, strict=True))
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def require_digest(config: FluxModelConfig, directory: Path) -> None:
    """Check the files of a model against `model.sha256`, if it is set. They are read once per machine.

    Raises:
        ConfigError: they have another hash.
    """
    if config.sha256 is None:
        return
    controlnet = None if config.controlnet is None else controlnet_place(config.controlnet).find()
    found = model_digest(directory, {name: each.file for name, each in model_files(config).items()}, controlnet)
    if found != config.sha256.lower():
        hint = f"the files in {directory} have {found}; download the model again, or set this hash if you trust them"
        raise ConfigError(Problem("model.sha256", "is not the hash of the model's files", config.sha256, hint))
