"""Finds the tars of `dataset=webdataset`, and opens their indexes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fluxexp.config.dataset_places import expand_braces
from fluxexp.config.schema import WebDatasetConfig
from fluxexp.data.file_access import AllowedFolders, remedy
from fluxexp.data.paths import expanded, is_url
from fluxexp.data.remote_files import list_files
from fluxexp.data.table_place import config_trouble, require_url
from fluxexp.data.tar_index import TarError, TarIndex, open_index
from fluxexp.errors import ConfigError, Problem, SampleError
from fluxexp.passing_trouble import read_patiently

_THREADS = 8


def find_tars(path: str) -> list[str]:
    """The tars of `dataset.path`, in order. Raises a ConfigError if there are none."""
    if not path:
        raise ConfigError(Problem("dataset.path", "is not set", hint="set a tar, a folder of tars or a pattern"))
    try:
        names = expand_braces(path)
    except ValueError as error:
        raise ConfigError(Problem("dataset.path", str(error), path, "use a shorter range in {}")) from None
    if is_url(path):
        require_url("dataset.path", names[0])
        if path.endswith(".tar"):
            return names
        try:
            found = read_patiently(lambda: list_files(path.rstrip("/"), ".tar"))
        except (OSError, SampleError) as error:
            raise config_trouble("dataset.path", path, error) from None
    else:
        files = [expanded(name) for name in names]
        missing = next((str(file) for file in files if not file.exists()), None)
        if missing is not None:
            raise ConfigError(Problem("dataset.path", f"{missing} does not exist", path, "check the path"))
        if len(files) > 1 or not files[0].is_dir():
            return list(map(str, files))
        found = [str(file) for file in sorted(files[0].glob("*.tar"))]
    if not found:
        raise ConfigError(Problem("dataset.path", "contains no .tar", path, "set a tar, a folder of tars or a pattern"))
    return found


def open_tars(places: Sequence[str], config: WebDatasetConfig) -> list[TarIndex]:
    """The indexes of all tars. Several are read at once."""
    own = [expanded(place).parent for place in places[:1] if not is_url(place)]
    allowed = AllowedFolders(own if expanded(config.path).is_dir() else [Path("/")], config.allowed_folders)
    for place in places:
        if not is_url(place) and not allowed.contain(place):
            what = f"contains a link to {os.path.realpath(place)}"
            raise ConfigError(Problem("dataset.path", what, config.path, remedy([os.path.realpath(place)])))
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="index") as pool:
        return list(pool.map(_opened, places))


def _opened(place: str) -> TarIndex:
    try:
        return read_patiently(lambda: open_index(place))
    except TarError as error:
        raise ConfigError(Problem("dataset.path", str(error), place, "remove it, or copy it again")) from None
    except (OSError, SampleError) as error:
        raise config_trouble("dataset.path", place, error) from None
