"""Changes the step cache of a loaded model: the only optimization that can change after loading."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fluxexp.config.optimization_catalog import OPTIMIZATIONS
from fluxexp.config.schema import OptimizationConfig
from fluxexp.errors import ModelError
from fluxexp.models.flux1.denoiser import HoistedDenoiser
from fluxexp.models.step_cache.step_caches import make_step_cache

if TYPE_CHECKING:
    from fluxexp.models.flux1.flux1_model import Flux1Model


def change_step_cache(model: Flux1Model, config: OptimizationConfig) -> None:
    """Give `model` the step cache of `config`. Its other optimizations must be those of `config` already.

    Raises:
        ModelError: the step cache cannot be applied.
    """
    is_hoisted = isinstance(model.denoiser, HoistedDenoiser)
    step_cache, declared = None, OPTIMIZATIONS["step_cache"]
    applied = [words for words in model.applied_optimizations if not words.startswith(f"{declared.name}=")]
    if config.step_cache is not None:
        try:
            if reason := declared.reason_to_skip(config.step_cache, ["hoist_constants"] if is_hoisted else [], ()):
                raise ValueError(reason)
            step_cache = make_step_cache(config.step_cache)
        except ValueError as error:
            raise ModelError(f"optimization.step_cache cannot be applied: {error}") from error
        applied.append(declared.words(config.step_cache))
    if isinstance(model.denoiser, HoistedDenoiser):
        model.denoiser = model.denoiser.with_step_cache(step_cache)
    model.applied_optimizations = applied
