"""The VAE's residual blocks by fused operations: channels last, and GroupNorm with SiLU in two passes over memory.

The library's layers and arithmetic by other kernels: convolutions take channels last without reordering them, the
norm's scaling and SiLU are one pass, which sees to the bias of the convolution before it, too, and all that is added
at the end is added in one. Nothing is compiled, so a new size costs nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers.models.resnet import ResnetBlock2D

from fluxexp.models.fused_ops import add_by_channel, group_norm_silu


class NormSilu(torch.nn.Module):
    """A GroupNorm and the SiLU behind it."""

    def __init__(self, norm: torch.nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor, before: torch.Tensor | None = None) -> torch.Tensor:
        """Of x (B, channels, height, width), channels last, plus `before` (channels,)."""
        norm = self.norm
        return group_norm_silu(x, norm.num_groups, norm.weight, norm.bias, norm.eps, before)


class FusedResnet(torch.nn.Module):
    """A `ResnetBlock2D` without a time embedding. The biases of its convolutions are added by what comes next."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.conv1 = NormSilu(block.norm1), block.conv1
        self.norm2, self.conv2 = NormSilu(block.norm2), block.conv2
        self.shortcut = block.conv_shortcut

    def forward(self, x: torch.Tensor, temb: None = None) -> torch.Tensor:
        """(B, channels, height, width), channels last. There is no `temb`: the VAE knows no time."""
        update = _without_bias(self.conv1, self.norm1(x))
        update = _without_bias(self.conv2, self.norm2(update, self.conv1.bias))
        if self.shortcut is None:
            return add_by_channel(update, x, self.conv2.bias)
        return add_by_channel(update, _without_bias(self.shortcut, x), self.conv2.bias.float() + self.shortcut.bias)


def _without_bias(convolution: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, convolution.weight, None, convolution.stride, convolution.padding)


def fuse(vae: Any) -> str | None:
    """Make `vae`'s encoder and decoder of fused blocks; None, or why it cannot be: then nothing was changed."""
    blocks = [module for module in vae.modules() if isinstance(module, ResnetBlock2D)]
    for block in blocks:
        plain = isinstance(block.norm1, torch.nn.GroupNorm) and isinstance(block.norm2, torch.nn.GroupNorm)
        plain = plain and all(_is_plain(conv) for conv in (block.conv1, block.conv2, block.conv_shortcut))
        if not plain or block.time_emb_proj or block.upsample or block.downsample or block.output_scale_factor != 1:
            return "the VAE's residual blocks are of another kind"
    if not blocks or not isinstance(vae.decoder.conv_norm_out, torch.nn.GroupNorm):
        return "the VAE has no residual blocks with group norms"
    _replace(vae)
    for part in (vae.encoder, vae.decoder):
        part.conv_norm_out, part.conv_act = NormSilu(part.conv_norm_out), torch.nn.Identity()
    vae.to(memory_format=torch.channels_last)
    return None


def _is_plain(convolution: Any) -> bool:
    """Whether it is a convolution with a bias, or none at all."""
    if convolution is None:
        return True
    settings = (convolution.groups, convolution.dilation, convolution.padding_mode)
    return convolution.bias is not None and settings == (1, (1, 1), "zeros")


def _replace(module: torch.nn.Module) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, ResnetBlock2D):
            setattr(module, name, FusedResnet(child))
        else:
            _replace(child)
