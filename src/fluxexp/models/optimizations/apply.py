"""Applies the optimizations of a config in the order of their declaration, and builds the denoiser from the result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fluxexp.config.optimization_catalog import OPTIMIZATIONS
from fluxexp.config.schema import OptimizationConfig
from fluxexp.errors import ModelError
from fluxexp.models.kernels import matmul_workspace
from fluxexp.models.optimizations.apply_table import APPLY
from fluxexp.models.optimizations.optimization_pass import NotHereError, OptimizationPass

if TYPE_CHECKING:
    from fluxexp.models.flux1.flux1_model import Flux1Model


def apply_optimizations(model: Flux1Model, config: OptimizationConfig, resolution: int) -> None:
    """Apply what `config` asks for. `model` notes what was applied, and what was skipped with the reason.

    Args:
        resolution: side in pixels of the images that the model was made for: kernels are measured for that size.

    Raises:
        ModelError: an optimization fails, or it cannot be applied here and cannot be skipped without changing pixels.
    """
    this = OptimizationPass(model, config, model.tokens(resolution, resolution, None))
    for name, value in _asked(config).items():
        try:
            words = _apply(this, name)
        except NotHereError as reason:
            if OPTIMIZATIONS[name].kind_of(value) == "approximate":
                raise ModelError(f"optimization.{name} cannot be applied: {reason}") from reason
            model.skipped_optimizations[name] = str(reason)
        except (ValueError, RuntimeError, ImportError, AttributeError) as error:
            raise ModelError(f"optimization.{name} cannot be applied: {error}") from error
        else:
            this.applied.add(name)
            model.applied_optimizations.append(words)
    this.build_denoiser()
    if matmul_workspace.fix_workspace(model.device) and not config.no_matmul_workspace:
        words = "no_matmul_workspace (set by another model of this process, or by the environment)"
        model.applied_optimizations.append(words)


def _asked(config: OptimizationConfig) -> dict[str, object]:
    """The optimizations that are on, with their values, in the order of application."""
    return {name: value for name in OPTIMIZATIONS if (value := getattr(config, name))}


def _apply(this: OptimizationPass, name: str) -> str:
    """Apply one optimization. Returns its description for the summary."""
    asked = _asked(this.config)
    later = list(asked)[list(asked).index(name) + 1 :]
    if reason := OPTIMIZATIONS[name].reason_to_skip(asked[name], this.applied, later):
        raise NotHereError(reason)
    return APPLY[name](this)
