"""Values that pass between the stages of a FLUX.1 model: conditioning, the start of a batch, and its latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fluxexp.models.flux1.ip_adapter import PictureTokens
from fluxexp.models.text.text_cache import Encoding
from fluxexp.records import LoraUse, Point


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditioning:
    """One sample, encoded, and its working size. Tensors are in the model's dtype, on its device."""

    height: int
    width: int
    prompt_embeds: torch.Tensor
    """T5's, (text tokens, joint_attention_dim)."""
    pooled_embeds: torch.Tensor
    """CLIP's, (pooled_projection_dim,)."""
    pictures: torch.Tensor | None = None
    """Tokens of the references that follow those of the prompt (Redux): (references, picture tokens,
    joint_attention_dim). None: the family has no Redux."""
    ip_embed: torch.Tensor | None = None
    """CLIP's embedding of the reference (projection dimension,), if there is an IP-Adapter."""
    negative: Encoding | None = None
    """The same of the negative prompt; None if there is no second pass."""
    tokens: Any
    """The result of the family's `InputTokens.encode`."""
    start: Any
    """The result of the family's `Start.read`."""
    after_step: Any = None
    """The result of the family's `AfterStep.read`."""
    control: torch.Tensor | None = None
    """The encoded control image of a ControlNet: the posterior of its latents, or its pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondPass:
    """What the second pass of each step needs, with the negative prompts of a batch."""

    prompt_embeds: torch.Tensor
    """T5's, (B, text tokens, joint_attention_dim)."""
    pooled_embeds: torch.Tensor
    """CLIP's, (B, pooled_projection_dim)."""
    scales: torch.Tensor
    """`true_cfg_scale` of each image, float32 (B,)."""
    pictures: PictureTokens | None
    """Of an IP-Adapter, if there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """What the ControlNet needs of a batch."""

    image: torch.Tensor
    """Packed latents of the control images (B, image tokens, 4 * latent channels), or their pixels (B, 3, H, W)."""
    modes: torch.Tensor | None
    """Kinds of the control images, int64 (B, 1). None: the ControlNet has one kind."""
    guidance: torch.Tensor | None
    """Float32 (B,). None: the ControlNet has no guidance embeddings."""
    scales: torch.Tensor
    """Factor of its residuals for each step and image, float32 (steps, B)."""
    is_used: tuple[bool, ...]
    """For each step, whether any of the factors is not 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """A batch at the start of its integration: all that the steps need, on any rank of a replica."""

    point: Point
    height: int
    width: int
    latents: torch.Tensor
    """Packed, (B, image tokens, 4 * latent channels)."""
    added: torch.Tensor | None
    """What `InputTokens.join` adds to the latents at every step: the result of `InputTokens.added`."""
    after_step: Any
    """The result of `AfterStep.begin`."""
    inputs: dict[str, Any]
    """The transformer's other inputs (`Denoiser.prepare`)."""
    second: SecondPass | None
    control: Control | None
    """None: the family has no ControlNet."""
    row_loras: Sequence[tuple[LoraUse, ...]] | None
    """The LoRAs of each image, if they are not merged. None: those of `point` are merged into the weights."""
    generators: list[torch.Generator] | None
    """For noise that the scheduler draws at each step; None if it draws none."""


@dataclass(frozen=True, slots=True)
class PackedLatents:
    """Packed latents and the size in pixels of the images they hold."""

    packed: torch.Tensor
    height: int
    width: int
    computed_steps: list[int]
