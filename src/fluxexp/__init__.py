"""fluxexp: experiments with FLUX on any number of devices.

From a script or a notebook (docs/python.md): `load` reads results, `run` and `sweep` make some. What is imported here
is loaded when it is first used, so `import fluxexp` imports neither torch nor pandas.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from fluxexp.version import __version__

if TYPE_CHECKING:
    from fluxexp.api.load import load
    from fluxexp.api.run_result import RunResult
    from fluxexp.api.starting import run, sweep
    from fluxexp.api.sweep_result import SweepResult
    from fluxexp.errors import ConfigError, FluxexpError, RunError, StorageError
    from fluxexp.records import Record

__all__ = [
    "ConfigError",
    "FluxexpError",
    "Record",
    "RunError",
    "RunResult",
    "StorageError",
    "SweepResult",
    "__version__",
    "load",
    "run",
    "sweep",
]

_MODULES = {
    **dict.fromkeys(("ConfigError", "FluxexpError", "RunError", "StorageError"), "fluxexp.errors"),
    "Record": "fluxexp.records",
    "RunResult": "fluxexp.api.run_result",
    "SweepResult": "fluxexp.api.sweep_result",
    "load": "fluxexp.api.load",
    "run": "fluxexp.api.starting",
    "sweep": "fluxexp.api.starting",
}
"""The module of each name that is imported late. Type checkers read the imports above."""


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(_MODULES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
