"""Schema of the config groups redux and ip_adapter: pictures as a part of the prompt, or beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fluxexp.config.rules import Range
from fluxexp.records import IpAdapterUse, ReduxUse

PictureScale = Annotated[float, Range(-100, 100)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReduxConfig:
    """FLUX.1 Redux: the tokens of a reference follow those of the prompt. Only for families with `flux_redux`."""

    path: str | None
    """FLUX.1-Redux in the layout of diffusers, which is SigLIP and the layers that make tokens of its output. A
    directory or a hub id (`org/name`). null: random weights, or a family without Redux."""
    revision: str | None
    """As `model.revision`, of Redux."""
    reads_prompt: bool
    """Whether T5 and CLIP read the prompt. false: their tokens are zeros, as diffusers makes them without text
    encoders; then the prompt only names the image."""
    scale: PictureScale
    """Factor of the tokens of prompt and reference. diffusers calls it `prompt_embeds_scale`."""
    pooled_scale: PictureScale
    """Factor of CLIP's pooled embedding. diffusers calls it `pooled_prompt_embeds_scale`."""

    @property
    def weights(self) -> tuple[str | None, ...]:
        """What is loaded. Runs that share it can share a loaded model."""
        return self.path, self.revision

    @property
    def use(self) -> ReduxUse:
        """What of it belongs to a point."""
        return ReduxUse(self.reads_prompt, self.scale, self.pooled_scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class IpAdapterConfig:
    """An IP-Adapter: layers beside the transformer, which attend to a few tokens of a reference."""

    path: str | None
    """A .safetensors file in the format of XLabs or diffusers. random: random weights, for a model of random weights.
    null: no IP-Adapter."""
    image_encoder: str | None
    """The CLIP with which the IP-Adapter was trained, in the layout of transformers: a directory or a hub id
    (`org/name`). null: none, which only random weights allow."""
    image_encoder_revision: str | None
    """As `model.revision`, of the image encoder."""
    scale: PictureScale
    """Factor of what the IP-Adapter adds."""
    layer_scales: list[PictureScale] | None
    """A further factor for each double block (19 in FLUX.1). null: 1 for all."""

    @property
    def use(self) -> IpAdapterUse:
        """What of it belongs to a point."""
        return IpAdapterUse(self.scale, tuple(self.layer_scales or ()))

    @property
    def weights(self) -> tuple[str | None, ...]:
        """What is loaded. Runs that share it can share a loaded model."""
        return self.path, self.image_encoder, self.image_encoder_revision


RANDOM = "random"
"""Value of `ip_adapter.path` for random weights."""
