"""Attention kernels that are called without copies of their inputs, and the choice of the fastest on a device.

Candidates are PyTorch's kernels, and FlashAttention 3 (arXiv 2407.08608) and 4 if their packages are installed. The
measurements are kept in fluxexp's cache directory, per device and shape. So all processes on a machine make the same
choice, and later ones do not measure again.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel

from fluxexp.models.kernels.attention_types import Attend
from fluxexp.models.kernels.compile_cache import cache_file, exclusively
from fluxexp.parallel.topology import is_device_lost, is_out_of_memory

TORCH_KERNELS: Mapping[str, SDPBackend | None] = {
    "native": None,
    "_native_cudnn": SDPBackend.CUDNN_ATTENTION,
    "_native_flash": SDPBackend.FLASH_ATTENTION,
}
"""PyTorch's kernels by the backend names of diffusers. The first is the reference for the results of the others, and is
chosen unless another is clearly faster."""
_MODULES = {"_flash_3": "flash_attn_interface", "flash_attn_4": "flash_attn.cute"}
"""Modules of optional packages, by backend name. Their `flash_attn_func` takes tensors (B, tokens, heads, head
dimension). diffusers uses the first under the same name; of the second it only knows builds from a hub."""
_CLEARLY_FASTER = 0.97
"""A kernel replaces an earlier candidate if its time is less than this times the time of that candidate."""
_REPEATS = 15
_TOLERANCE = 1e-2
"""Largest relative distance between results that rounding explains: the limit for lossless optimizations."""


def installed_attention() -> list[str]:
    """Names of the backends whose packages are installed. Some may not work on this device."""
    return [*TORCH_KERNELS, *(name for name, module in _MODULES.items() if _is_installed(module))]


def direct_attention(name: str) -> Attend | None:
    """The kernel of backend `name`, called without copies; None if only diffusers can call it.

    diffusers copies queries, keys and values to another memory order first. These kernels do not need that.

    Raises:
        ImportError: the package is not installed, or does not work with this PyTorch.
    """
    if name in _MODULES:
        return _packaged(_MODULES[name])
    if name not in TORCH_KERNELS:
        return None
    kernel = TORCH_KERNELS[name]

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        # PyTorch's kernels take (B, heads, tokens, head dimension) with any strides: the transpose is only a view.
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        if kernel is None:
            return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        with sdpa_kernel(kernel):
            return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)

    return attend


def fastest_attention(
    names: Iterable[str], tokens: int, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[str, str]:
    """The fastest of the backends `names` for one image of `tokens` tokens, and a description of the measurements.

    Args:
        names: from `installed_attention`. The first must work on every device.

    Raises:
        torch.OutOfMemoryError: there is no memory for the queries, keys and values of one layer.
    """
    if device.type != "cuda":
        return "native", "the only backend on a CPU"
    versions = [(name, _version(name)) for name in names]
    gpu = torch.cuda.get_device_name(device)
    key = ["attention", gpu, torch.__version__, tokens, heads, head_dim, str(dtype), *versions]
    file = cache_file("attention", key, ".json")
    # One process measures, and the others wait for its file: kernels that run at the same time would distort the times.
    with exclusively(file.with_suffix(".lock")):
        with suppress(OSError, ValueError):
            return choice(json.loads(file.read_text(encoding="utf-8")))
        found = measured(names, torch.randn(3, 1, tokens, heads, head_dim, device=device, dtype=dtype))
        with suppress(OSError):  # without a cache file, the next start takes a second longer
            file.write_text(json.dumps(found), encoding="utf-8")
    return choice(found)


def choice(found: Mapping[str, float | str]) -> tuple[str, str]:
    """The name of the fastest backend, and a description of all measurements.

    Args:
        found: result of `measured`.
    """
    seconds = {name: value for name, value in found.items() if not isinstance(value, str)}
    best = min(seconds.values())
    preferred = next(name for name, value in seconds.items() if value * _CLEARLY_FASTER <= best)
    words = (
        f"{name} is left out: {value}" if isinstance(value, str) else f"{name} {1e6 * value:.0f} us"
        for name, value in found.items()
    )
    return preferred, ", ".join(words)


@torch.inference_mode()
def measured(names: Iterable[str], qkv: torch.Tensor) -> dict[str, float | str]:
    """Measure each backend: the median of its seconds, or the reason to leave it out.

    A backend is left out if its package is missing, if it fails, or if its result differs from that of the first one.

    Args:
        names: of backends. The first must work.
        qkv: queries, keys and values (3, B, tokens, heads, head dimension).

    Raises:
        torch.OutOfMemoryError: a backend ran out of memory. That says nothing about its speed, so no result is cached.
    """
    found: dict[str, float | str] = {}
    expected: torch.Tensor | None = None
    query, key, value = qkv
    for name in names:
        try:
            attend = direct_attention(name)
            assert attend is not None
            attended = attend(query, key, value).float()
            expected = attended if expected is None else expected
            distance = float((attended - expected).norm() / expected.norm())
            if not distance < _TOLERANCE:  # also if the distance is NaN
                found[name] = f"its results differ from those of others by {distance:.1g} (relative)"
                continue
            found[name] = _time(attend, qkv)
        except Exception as error:  # other packages may raise anything
            if expected is None or is_device_lost(error) or is_out_of_memory(error):
                raise
            found[name] = f"{type(error).__name__}: {error}".partition("\n")[0]
    return found


def _time(attend: Attend, qkv: torch.Tensor) -> float:
    query, key, value = qkv
    seconds = []
    for _ in range(_REPEATS):
        _synchronize(qkv.device)
        start = time.perf_counter()
        attend(query, key, value)
        _synchronize(qkv.device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _packaged(module: str) -> Attend:
    function = import_module(module).flash_attn_func

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = function(query, key, value)
        attended: torch.Tensor = out[0] if isinstance(out, tuple) else out  # some versions also return the log-sum-exp
        return attended

    return attend


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package is not installed either
        return False
    except ImportError:  # its parent package is broken: `measured` reports why
        return True


def _version(name: str) -> str | None:
    """A string that changes when the package of a backend is installed again; None for kernels of PyTorch."""
    if name not in _MODULES:
        return None
    with suppress(ImportError, OSError):
        spec = find_spec(_MODULES[name])
        if spec is not None and spec.origin is not None:
            return f"{spec.origin} {Path(spec.origin).stat().st_mtime_ns}"
    return "unknown"
