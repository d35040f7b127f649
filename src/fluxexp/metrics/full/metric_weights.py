"""Finds the weights of metrics, at a path or on a hub, and reports missing ones before a run makes images.

It does not load the weights; `weight_files` checks the names in them. For paths, it does not import torch.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from fluxexp.config.file_hashes import file_content
from fluxexp.config.fingerprint import directory_content
from fluxexp.config.schema import FullMetricsConfig
from fluxexp.errors import Problem
from fluxexp.metrics.full.weight_files import file_problem, model_problem
from fluxexp.records import content_hash

REQUIRED_WEIGHTS: dict[str, tuple[str, ...]] = {
    "lpips": ("alexnet",),
    "dists": ("vgg16",),
    "clip_score": ("clip",),
    "clip_iqa": ("clip",),
    "aesthetic": ("clip", "aesthetic"),
    "pick_score": ("pick_score",),
    "hps": ("hps",),
    "fid": ("inception",),
    "kid": ("inception",),
    "cmmd": ("clip",),
}
"""Keys of `metrics.weights` that each metric needs."""
_LIBRARIES = {"lpips": "torchvision", "dists": "torchvision", "fid": "torch_fidelity", "kid": "torch_fidelity"}
_DOWNLOADED = "download"
_MODEL_FILES = ("*.json", "*.txt", "*.safetensors")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True)
class FoundWeights:
    """Weights that exist, and metrics whose weights are missing."""

    weights: Mapping[str, Path]
    """Files, or directories in the layout of transformers, by key of `metrics.weights`."""
    missing: Mapping[str, Problem]
    """The reason, by metric."""


class _MissingError(Exception):
    """Weights are not available. The message is the reason; `hint` says what to do."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.hint = hint


def find_weights(config: FullMetricsConfig) -> FoundWeights:
    """Find the weights of all metrics in `config.use`; download them if necessary. Raises no error for missing ones."""
    asked = asdict(config.weights)
    weights: dict[str, Path] = {}
    missing: dict[str, Problem] = {}
    for metric in config.use:
        library = _LIBRARIES.get(metric)
        if library is not None and importlib.util.find_spec(library) is None:
            hint = "pip install 'fluxexp[metrics]', or metrics.skip_missing=true"
            missing[metric] = Problem("metrics.use", f"needs {library}, which is not installed", metric, hint)
            continue
        for key in REQUIRED_WEIGHTS[metric]:
            try:
                if key not in weights:
                    weights[key] = _FINDERS[key](key, asked[key])
            except _MissingError as error:
                hint = f"{error.hint}, or metrics.skip_missing=true skips {metric}"
                missing[metric] = Problem(f"metrics.weights.{key}", str(error), asked[key] or "null", hint)
                break
    return FoundWeights(weights, missing)


def weights_identity(path: Path) -> str:
    """Hash of the content of weights: 12 hex digits. It does not depend on their path."""
    return (directory_content(path) if path.is_dir() else content_hash(file_content(path)))[:12]


def _model(_: str, spec: str | None) -> Path:
    """Find a directory in the layout of transformers, or download it from a hub."""
    wanted = "set it to a directory in the layout of transformers, or to org/name"
    if spec is None:
        raise _MissingError("is not set", wanted)
    path = Path(spec).expanduser()
    if not path.exists():
        if not _may_be_hub_id(spec):
            raise _MissingError("is not a directory", wanted)
        path = _fetched(_Snapshot(spec))
    if wrong := model_problem(path):
        raise _MissingError(wrong, "set it to a CLIP model in the layout of transformers")
    return path


def _head(key: str, spec: str | None) -> Path:
    """Find a file, or download `org/name:file` from a hub."""
    wanted = "set it to a file, or to org/name:file"
    if spec is None:
        raise _MissingError("is not set", wanted)
    path = Path(spec).expanduser()
    if not path.exists():
        repository, _, name = spec.partition(":")
        if not name or not _may_be_hub_id(repository):
            raise _MissingError("is not a file", wanted)
        path = _fetched(_Snapshot(repository, name))
    return _checked(key, path, wanted)


def _network(key: str, spec: str | None) -> Path:
    """Find a file with a state dict. For `download`, use the file of the library, in torch's cache."""
    wanted = f"set it to a file with the state dict, or to {_DOWNLOADED}"
    if spec == _DOWNLOADED:
        return _fetched(_Release(_release(key)))
    path = Path(spec or "").expanduser()
    if spec is None or not path.is_file():
        raise _MissingError("is not set" if spec is None else "is not a file", wanted)
    return _checked(key, path, wanted)


def _checked(key: str, path: Path, wanted: str) -> Path:
    if wrong := file_problem(key, path):
        raise _MissingError(wrong, wanted)
    return path


def _may_be_hub_id(spec: str) -> bool:
    """Whether `spec` can be a hub id. If its parent directory exists, it is a path, as for `model.path`."""
    return _HUB_ID.fullmatch(spec) is not None and not Path(spec).expanduser().parent.is_dir()


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """A repository on a hub, or one file of it."""

    repository: str
    file: str | None = None

    def fetch(self) -> str:
        """Download it, and return its path in the hub's cache."""
        from huggingface_hub import hf_hub_download, snapshot_download

        if self.file is not None:
            return str(hf_hub_download(self.repository, self.file))
        return str(snapshot_download(self.repository, allow_patterns=list(_MODEL_FILES)))

    def by_hand(self) -> str:
        """What the user can do instead."""
        return f"hf download {self.repository}" + (f" {self.file}" if self.file else "")


@dataclass(frozen=True, slots=True)
class _Release:
    """A file at a web address. It is stored in torch's cache, where the libraries also look for it."""

    url: str

    def fetch(self) -> str:
        """Download it if necessary, and return its path."""
        import torch

        target = self._target()
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(self.url, str(target), progress=False)
        return str(target)

    def by_hand(self) -> str:
        """What the user can do instead."""
        return f"download {self.url} to {self._target()}"

    def _target(self) -> Path:
        import torch

        return Path(torch.hub.get_dir(), "checkpoints", self.url.rpartition("/")[2])


def _release(key: str) -> str:
    """The web address of the weights that the library of a network uses."""
    if key == "inception":
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

        return str(URL_INCEPTION_V3)
    from torchvision.models import get_model_weights

    return str(get_model_weights(key).DEFAULT.url)


def _fetched(source: _Snapshot | _Release) -> Path:
    path, error = _attempt(source)
    if path is None:
        raise _MissingError(f"cannot be downloaded ({error})", source.by_hand())
    return path


@cache
def _attempt(source: _Snapshot | _Release) -> tuple[Path | None, str]:
    """The path and no error, or None and the error. Cached, because every point of a sweep needs the same weights."""
    try:
        return Path(source.fetch()), ""
    except Exception as error:  # the hub's client and its HTTP library raise errors of many types
        return None, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


_FINDERS: dict[str, Callable[[str, str | None], Path]] = {
    "alexnet": _network,
    "vgg16": _network,
    "inception": _network,
    "clip": _model,
    "aesthetic": _head,
    "pick_score": _model,
    "hps": _model,
}
