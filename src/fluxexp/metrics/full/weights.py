"""Where networks' weights are: a path, else what a hub gives. Finds out what is missing before anything is made."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from fluxexp.config.schema import FullMetrics
from fluxexp.errors import Problem

NEEDED: dict[str, tuple[str, ...]] = {
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
"""Keys of `metrics.weights` by metric."""
_LIBRARIES = {"lpips": "torchvision", "dists": "torchvision", "fid": "torch_fidelity", "kid": "torch_fidelity"}
_DOWNLOADED = "download"
_MODEL_FILES = ("*.json", "*.txt", "*.safetensors")


@dataclass(frozen=True, slots=True)
class Found:
    """Weights that are there, and metrics that have none."""

    weights: Mapping[str, Path | None]
    """By key of `metrics.weights`; None where the library fetches its own, and has."""
    missing: Mapping[str, Problem]
    """By metric."""


class _MissingError(Exception):
    """Weights that cannot be had: why, and what to do."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.hint = hint


def find_weights(config: FullMetrics) -> Found:
    """Look up, and download if need be, the weights of all metrics in `config.use`; raises nothing for missing ones."""
    asked = asdict(config.weights)
    weights: dict[str, Path | None] = {}
    missing: dict[str, Problem] = {}
    for metric in config.use:
        library = _LIBRARIES.get(metric)
        if library is not None and importlib.util.find_spec(library) is None:
            hint = "pip install 'fluxexp[metrics]', or metrics.skip_missing=true"
            missing[metric] = Problem("metrics.use", f"needs {library}, which is not installed", metric, hint)
            continue
        for key in NEEDED[metric]:
            try:
                if key not in weights:
                    weights[key] = _FINDERS[key](asked[key])
            except _MissingError as error:
                hint = f"{error.hint}, or metrics.skip_missing=true leaves out {metric}"
                missing[metric] = Problem(f"metrics.weights.{key}", str(error), asked[key] or "null", hint)
                break
    return Found(weights, missing)


def _model(spec: str | None) -> Path:
    """A directory in the layout of transformers, or a hub id."""
    if spec is None:
        raise _MissingError("is not set", "give a directory in the layout of transformers, or org/name")
    path = Path(spec).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise _MissingError("holds no config.json", "give a directory in the layout of transformers")
        return path
    from huggingface_hub import snapshot_download

    fetch = lambda: snapshot_download(spec, allow_patterns=list(_MODEL_FILES))  # noqa: E731
    return _fetched(fetch, f"hf download {spec}")


def _file(spec: str | None) -> Path:
    """A file, or `org/name:file` of a hub."""
    if spec is None:
        raise _MissingError("is not set", "give a file, or org/name:file")
    path = Path(spec).expanduser()
    if path.is_file():
        return path
    repository, _, name = spec.partition(":")
    if not name:
        raise _MissingError("is no file", "give a file, or org/name:file")
    from huggingface_hub import hf_hub_download

    return _fetched(lambda: hf_hub_download(repository, name), f"hf download {repository} {name}")


def _fetched(fetch: Callable[[], str], by_hand: str) -> Path:
    try:
        return Path(fetch())
    except Exception as error:  # whatever the hub's client and its HTTP library raise
        reason = str(error).strip().partition("\n")[0]
        raise _MissingError(f"cannot be had ({type(error).__name__}: {reason})", by_hand) from error


def _backbone(name: str) -> Callable[[str | None], Path]:
    """A file with the weights of a torchvision network; `download`: torchvision's own, in torch's cache."""

    def find(spec: str | None) -> Path:
        if spec != _DOWNLOADED:
            return _own_file(spec)
        import torch
        from torchvision.models import get_model_weights

        url = str(get_model_weights(name).DEFAULT.url)
        return _downloaded(url, Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2]))

    return find


def _inception(spec: str | None) -> Path:
    """A file; `download`: torch-fidelity's own, in torch's cache."""
    if spec != _DOWNLOADED:
        return _own_file(spec)
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    name = URL_INCEPTION_V3.rpartition("/")[2]
    return _downloaded(URL_INCEPTION_V3, Path(torch.hub.get_dir(), "checkpoints", name))


def _own_file(spec: str | None) -> Path:
    path = Path(spec or "").expanduser()
    if not path.is_file():
        raise _MissingError("is no file", f"give a file with its state dict, or {_DOWNLOADED}")
    return path


def _downloaded(url: str, target: Path) -> Path:
    import torch

    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(target), progress=False)
        except OSError as error:
            raise _MissingError(f"cannot be had ({error})", f"put {url} at {target}") from error
    return target


_FINDERS: dict[str, Callable[[str | None], Path | None]] = {
    "alexnet": _backbone("alexnet"),
    "vgg16": _backbone("vgg16"),
    "inception": _inception,
    "clip": _model,
    "aesthetic": _file,
    "pick_score": _model,
    "hps": _model,
}
