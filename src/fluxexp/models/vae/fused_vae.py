"""The VAE's blocks with fused operations, in channels-last memory. GroupNorm with SiLU takes two passes over memory.

Layers and arithmetic are the library's, with other kernels:

- Convolutions take channels-last tensors without a conversion.
- One kernel does the scaling of a norm and SiLU. It also adds the bias of the convolution before the norm.
- One kernel adds the shortcut and the biases at the end of a block.
- Attention in the middle block has one head that is too wide for attention kernels: it is two matrix products.

Nothing is compiled, so a new image size costs nothing.
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
    """A GroupNorm and the SiLU after it."""

    def __init__(self, norm: torch.nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor, pre_bias: torch.Tensor | None = None) -> torch.Tensor:
        """silu(norm(x + pre_bias)), for x (B, channels, height, width), channels last, and `pre_bias` (channels,)."""
        norm = self.norm
        return group_norm_silu(x, norm.num_groups, norm.weight, norm.bias, norm.eps, pre_bias)


class FusedResnet(torch.nn.Module):
    """A `ResnetBlock2D` without a time embedding. The kernel after each convolution adds its bias."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.conv1 = NormSilu(block.norm1), block.conv1
        self.norm2, self.conv2 = NormSilu(block.norm2), block.conv2
        self.shortcut = block.conv_shortcut

    def forward(self, x: torch.Tensor, temb: None = None) -> torch.Tensor:
        """The block's output for x (B, channels, height, width), channels last. `temb` is not used."""
        update = _without_bias(self.conv1, self.norm1(x))
        update = _without_bias(self.conv2, self.norm2(update, self.conv1.bias))
        if self.shortcut is None:
            return add_by_channel(update, x, self.conv2.bias)
        # Both biases are added at once, and their sum stays in float32.
        return add_by_channel(update, _without_bias(self.shortcut, x), self.conv2.bias.float() + self.shortcut.bias)


class FusedVaeAttention(torch.nn.Module):
    """Attention among all pixels in the middle block, with one head and merged projections."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        merge_projections(attention)
        self.norm, self.to_qkv, self.to_out = attention.group_norm, attention.to_qkv, attention.to_out[0]

    def forward(self, x: torch.Tensor, temb: None = None) -> torch.Tensor:
        """The block's output for x (B, channels, height, width), channels last. `temb` is not used."""
        tokens = self.norm(x).permute(0, 2, 3, 1)  # each pixel is a token
        query, key, value = self.to_qkv(tokens.flatten(1, 2)).chunk(3, dim=-1)
        attended = F.linear(one_head_attention(query, key, value), self.to_out.weight)
        return add_by_channel(attended.view(tokens.shape).permute(0, 3, 1, 2), x, self.to_out.bias)


def _without_bias(convolution: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, convolution.weight, None, convolution.stride, convolution.padding)


def fuse(vae: Any) -> str | None:
    """Replace the blocks of the encoder and decoder of `vae` by fused ones.

    Returns:
        None; or the reason why it is not possible, and then nothing has changed.
    """
    blocks = [module for module in vae.modules() if isinstance(module, ResnetBlock2D)]
    for block in blocks:
        plain = isinstance(block.norm1, torch.nn.GroupNorm) and isinstance(block.norm2, torch.nn.GroupNorm)
        plain = plain and all(_is_plain(conv) for conv in (block.conv1, block.conv2, block.conv_shortcut))
        if not plain or block.time_emb_proj or block.upsample or block.downsample or block.output_scale_factor != 1:
            return "the VAE has residual blocks that the fused ones do not support"
    if not blocks or not isinstance(vae.decoder.conv_norm_out, torch.nn.GroupNorm):
        return "the VAE has no residual blocks with group norms"
    _replace(vae)
    for part in (vae.encoder, vae.decoder):
        part.conv_norm_out, part.conv_act = NormSilu(part.conv_norm_out), torch.nn.Identity()
    vae.to(memory_format=torch.channels_last)
    return None


def _has_one_head(attention: Attention) -> bool:
    """Whether `attention` is only a group norm, one head with plain projections, and a residual connection."""
    extras = (attention.spatial_norm, attention.norm_q, attention.norm_k)
    is_plain = attention.residual_connection and attention.rescale_output_factor == 1 and extras == (None, None, None)
    layers = (attention.to_q, attention.to_k, attention.to_v, attention.to_out[0])
    is_plain = is_plain and all(type(layer) is torch.nn.Linear and layer.bias is not None for layer in layers)
    return is_plain and attention.heads == 1 and isinstance(attention.group_norm, torch.nn.GroupNorm)


def _is_plain(convolution: Any) -> bool:
    """Whether `convolution` is one with a bias and without groups, dilation or other padding; or None."""
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
