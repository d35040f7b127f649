"""Offloading: weights stay in host memory while the GPU does not need them."""

from __future__ import annotations

from fluxexp.models.flux1.offloading import offload
from fluxexp.models.optimizations.optimization_pass import NotHereError, OptimizationPass, Topic


def _offload(this: OptimizationPass) -> str:
    this.require_gpu()
    plan = this.model.offload_plan
    if plan is None:
        raise NotHereError("the model was loaded without an offload plan")
    this.change_options(streams=offload(this.model, plan))
    this.free_replaced_weights()
    return f"offload={plan.words}"


OFFLOAD: Topic = {"offload": _offload}
