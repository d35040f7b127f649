"""The VAE's blocks by fused operations: channels last, and GroupNorm with SiLU in two passes over memory.

The library's layers and arithmetic by other kernels: convolutions take channels last without reordering them, the
norm's scaling and SiLU are one pass, which sees to the bias of the convolution before it, too, and all that is added
at the end is added in one. The middle block's attention, whose one head is too wide for attention kernels, is matrix
products. Nothing is compiled, so a new size costs nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D

from fluxexp.models.kernels.fused_ops import add_by_channel, group_norm_silu, one_head_attention
from fluxexp.models.kernels.merged_projections import merge_projections


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


class FusedVaeAttention(torch.nn.Module):
    """The attention among all pixels of a middle block, with merged projections and one head."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        merge_projections(attention)
        self.norm, self.to_qkv, self.to_out = attention.group_norm, attention.to_qkv, attention.to_out[0]

    def forward(self, x: torch.Tensor, temb: None = None) -> torch.Tensor:
        """(B, channels, height, width), channels last. There is no `temb`: the VAE knows no time."""
        tokens = self.norm(x).permute(0, 2, 3, 1)
        query, key, value = self.to_qkv(tokens.flatten(1, 2)).chunk(3, dim=-1)
        attended = F.linear(one_head_attention(query, key, value), self.to_out.weight)
        return add_by_channel(attended.view(tokens.shape).permute(0, 3, 1, 2), x, self.to_out.bias)


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


def _has_one_head(attention: Attention) -> bool:
    """Whether it is a norm, attention with one head and no more, and what comes in is added at the end."""
    extras = (attention.spatial_norm, attention.norm_q, attention.norm_k)
    is_plain = attention.residual_connection and attention.rescale_output_factor == 1 and extras == (None, None, None)
    layers = (attention.to_q, attention.to_k, attention.to_v, attention.to_out[0])
    is_plain = is_plain and all(type(layer) is torch.nn.Linear and layer.bias is not None for layer in layers)
    return is_plain and attention.heads == 1 and isinstance(attention.group_norm, torch.nn.GroupNorm)


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
        elif isinstance(child, Attention) and _has_one_head(child):
            setattr(module, name, FusedVaeAttention(child))
        else:
            _replace(child)
