"""Attention kernels without copies around them, and a choice by measuring them on the device at hand.

Candidates are PyTorch's kernels and FlashAttention 3 (arXiv 2407.08608) and 4, where their packages are installed. What
was measured is kept in fluxexp's cache directory for each device and shape, so that all processes on a machine choose
alike, and the next ones without measuring.
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
"""By diffusers' names. The first is what others are compared with, and preferred where they are hardly faster."""
_MODULES = {"_flash_3": "flash_attn_interface", "flash_attn_4": "flash_attn.cute"}
"""Of packages that may be installed; their `flash_attn_func` takes tensors as they lie. diffusers has the first by the
same name, and of the other only what a hub has."""
_CLEARLY = 0.97
_REPEATS = 15
_TOLERANCE = 1e-2
"""Relative distance that is a matter of rounding: as of all that is lossless."""


def installed_attention() -> list[str]:
    """Names of the backends whose packages are installed, whether they work or not."""
    return [*TORCH_KERNELS, *(name for name, module in _MODULES.items() if _is_installed(module))]


def direct_attention(name: str) -> Attend | None:
    """The kernel of the backend `name` on tensors as they lie; None where only the library knows it.

    The library copies queries, keys and values into another order first, which these kernels can do without.

    Raises:
        ImportError: its package is not installed, or does not fit to this PyTorch.
    """
    if name in _MODULES:
        return _packaged(_MODULES[name])
    if name not in TORCH_KERNELS:
        return None
    kernel = TORCH_KERNELS[name]

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        if kernel is None:
            return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        with sdpa_kernel(kernel):
            return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)

    return attend


def fastest_attention(
    names: Iterable[str], tokens: int, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[str, str]:
    """The fastest of the backends `names` for one image of `tokens` tokens, and in words how it compares with others.

    Args:
        names: of `installed_attention`, the first of which works everywhere.

    Raises:
        torch.OutOfMemoryError: there is no room for one layer's queries, keys and values.
    """
    if device.type != "cuda":
        return "native", "the only one on a CPU"
    versions = [(name, _version(name)) for name in names]
    gpu = torch.cuda.get_device_name(device)
    key = ["attention", gpu, torch.__version__, tokens, heads, head_dim, str(dtype), *versions]
    file = cache_file("attention", key, ".json")
    with exclusively(file.with_suffix(".lock")):
        with suppress(OSError, ValueError):
            return choice(json.loads(file.read_text(encoding="utf-8")))
        found = measured(names, torch.randn(3, 1, tokens, heads, head_dim, device=device, dtype=dtype))
        with suppress(OSError):  # a cache that cannot be written costs the next start a second
            file.write_text(json.dumps(found), encoding="utf-8")
    return choice(found)


def choice(found: Mapping[str, float | str]) -> tuple[str, str]:
    """Of what was measured the name of the fastest, and all of it in words."""
    seconds = {name: value for name, value in found.items() if not isinstance(value, str)}
    best = min(seconds.values())
    preferred = next(name for name, value in seconds.items() if value * _CLEARLY <= best)
    words = (
        f"{name} is left out: {value}" if isinstance(value, str) else f"{name} {1e6 * value:.0f} us"
        for name, value in found.items()
    )
    return preferred, ", ".join(words)


@torch.inference_mode()
def measured(names: Iterable[str], qkv: torch.Tensor) -> dict[str, float | str]:
    """Seconds of each backend on queries, keys and values (3, B, tokens, heads, head dimension), or why it has none.

    One that is not here, fails or gives other values than the first is left out; the first has to work.
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
            if not distance < _TOLERANCE:
                found[name] = f"its values are {distance:.1g} from those of others"
                continue
            found[name] = _time(attend, qkv)
        except Exception as error:  # packages of others raise what they like
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
        attended: torch.Tensor = out[0] if isinstance(out, tuple) else out  # some versions give the sums with it
        return attended

    return attend


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # nor what it would be a part of
        return False
    except ImportError:  # what it is a part of cannot be imported: whoever tries to use it is told why
        return True


def _version(name: str) -> str | None:
    """Changes when its package is installed anew; None of what comes with PyTorch."""
    if name not in _MODULES:
        return None
    with suppress(ImportError, OSError):
        spec = find_spec(_MODULES[name])
        if spec is not None and spec.origin is not None:
            return f"{spec.origin} {Path(spec.origin).stat().st_mtime_ns}"
    return "unknown"
