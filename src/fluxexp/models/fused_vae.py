"""The VAE's residual blocks by fused operations: channels last, and GroupNorm with SiLU in two passes over memory.

The library's layers and arithmetic by other kernels: convolutions take channels last without reordering them, the
norm's scaling and SiLU are one pass, and what is added is added in place. Nothing is compiled, so a new size costs
nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D

from fluxexp.models.fused_ops import group_norm_silu


class NormSilu(torch.nn.Module):
    """A GroupNorm and the SiLU behind it."""

    def __init__(self, norm: torch.nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, channels, height, width), channels last."""
        norm = self.norm
        return group_norm_silu(x, norm.num_groups, norm.weight, norm.bias, norm.eps)


class FusedResnet(torch.nn.Module):
    """A `ResnetBlock2D` without a time embedding."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.conv1 = NormSilu(block.norm1), block.conv1
        self.norm2, self.conv2 = NormSilu(block.norm2), block.conv2
        self.shortcut = block.conv_shortcut

    def forward(self, x: torch.Tensor, temb: None = None) -> torch.Tensor:
        """(B, channels, height, width), channels last. There is no `temb`: the VAE knows no time."""
        update: torch.Tensor = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        return update.add_(x if self.shortcut is None else self.shortcut(x))


def fuse(vae: Any) -> str | None:
    """Make `vae`'s encoder and decoder of fused blocks; None, or why it cannot be: then nothing was changed."""
    blocks = [module for module in vae.modules() if isinstance(module, ResnetBlock2D)]
    for block in blocks:
        plain = isinstance(block.norm1, torch.nn.GroupNorm) and isinstance(block.norm2, torch.nn.GroupNorm)
        if not plain or block.time_emb_proj or block.upsample or block.downsample or block.output_scale_factor != 1:
            return "the VAE's residual blocks are of another kind"
    if not blocks or not isinstance(vae.decoder.conv_norm_out, torch.nn.GroupNorm):
        return "the VAE has no residual blocks with group norms"
    _replace(vae)
    for part in (vae.encoder, vae.decoder):
        part.conv_norm_out, part.conv_act = NormSilu(part.conv_norm_out), torch.nn.Identity()
    vae.to(memory_format=torch.channels_last)
    return None


def _replace(module: torch.nn.Module) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, ResnetBlock2D):
            setattr(module, name, FusedResnet(child))
        else:
            _replace(child)
