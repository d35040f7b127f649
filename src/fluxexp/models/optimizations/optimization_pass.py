"""One pass over the optimizations of a model: their common state, and the error for one that does not work here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._triton import has_triton

from fluxexp.config.schema import OptimizationConfig
from fluxexp.models.flux1.controlnet import HoistedControlNet
from fluxexp.models.flux1.denoiser import HoistedDenoiser
from fluxexp.models.flux1.denoiser_options import DenoiserOptions

if TYPE_CHECKING:
    from fluxexp.models.flux1.flux1_model import Flux1Model

NO_TRITON = "Triton is not installed, or does not support this GPU"


class NotHereError(Exception):
    """The optimization does not work on this device or with this model; the message says why."""


@dataclass(slots=True)
class OptimizationPass:
    """Collects what is applied to `model`. The denoiser is built from `options` once, after the last optimization."""

    model: Flux1Model
    config: OptimizationConfig
    tokens: int
    """Image and text tokens of an image of the model's own size: kernels are measured for this number."""
    options: DenoiserOptions = field(default_factory=DenoiserOptions)
    applied: set[str] = field(default_factory=set)
    """Names of the optimizations applied so far."""

    def change_options(self, **changes: Any) -> None:
        """Build the denoiser with these options."""
        self.options = replace(self.options, **changes)

    def build_denoiser(self) -> None:
        """Build the model's denoiser from the options, if any optimization asked for it."""
        if self.is_hoisted:
            model = self.model
            model.denoiser = HoistedDenoiser(model.transformer, self.options, layout=model.residual_layout)
            if model.controlnet is not None:
                model.controlnet = HoistedControlNet(model.pipeline.controlnet, self.options)

    @property
    def networks(self) -> list[Any]:
        """The networks with FLUX blocks: the transformer, and the ControlNet if there is one."""
        controlnet = getattr(self.model.pipeline, "controlnet", None)
        return [self.model.transformer] if controlnet is None else [self.model.transformer, controlnet]

    @property
    def is_hoisted(self) -> bool:
        """Whether the denoiser will be a `HoistedDenoiser`. Only that one uses the options."""
        return "hoist_constants" in self.applied

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.model.device

    def require_triton(self) -> None:
        """Raise NotHereError on a GPU that Triton has no kernels for. On a CPU there are plain versions of all."""
        if self.device.type == "cuda" and not has_triton():
            raise NotHereError(NO_TRITON)

    def require_gpu(self) -> None:
        """Raise NotHereError on a CPU."""
        if self.device.type != "cuda":
            raise NotHereError("there is no GPU")

    def require_merged_loras(self) -> None:
        """Raise NotHereError if each image of a batch has its own LoRAs, which only the library's layers can apply."""
        if self.model.mixes_loras:
            raise NotHereError("lora.mixing=true: the layers of each image have their own LoRAs")

    def require_fixed_weights(self) -> None:
        """Raise NotHereError if weights of the transformer change their address: compiled code and graphs hold it."""
        plan = self.model.offload_plan
        if plan is not None and plan.moves_transformer:
            raise NotHereError(f"offload={plan.policy}: the transformer's weights change their address")

    def free_replaced_weights(self) -> None:
        """Return the memory of replaced weights to the device, so that later code sees it as free."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


Apply = Callable[[OptimizationPass], str]
"""Applies one optimization; returns its words for `applied_optimizations`. Raises NotHereError if it does not work."""
Topic = Mapping[str, Apply]
"""The optimizations of one topic, by name."""
