"""The modules of `tiny_fill` and `tiny_dev`: small instances of the classes that FLUX uses."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from diffusers.models import FluxTransformer2DModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from tools.train_tiny_fill.vocabulary import TEXT_TOKENS

LATENT_CHANNELS = 16
VAE_SCALE = 8
TOKEN_CHANNELS = 4 * LATENT_CHANNELS
MASK_CHANNELS = 4 * VAE_SCALE**2
FILL_CHANNELS = 2 * TOKEN_CHANNELS + MASK_CHANNELS
"""Input channels of the Fill transformer: noisy latents, latents of the masked image, and the mask."""

_T5_WIDTH = 128
_CLIP_WIDTH = 96
# The schedule of FLUX.1-dev.
_SCHEDULE = {
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}


def make_vae() -> Any:
    """A small FLUX autoencoder: 16 latent channels, 8 x 8 pixels per latent, no quantization convolutions."""
    return AutoencoderKL(
        block_out_channels=(32, 64, 80, 80),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=LATENT_CHANNELS,
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=128,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def make_transformer(in_channels: int, single_layers: int) -> Any:
    """A FLUX transformer with guidance embedding: one double-stream block, then `single_layers` single-stream ones."""
    transformer = FluxTransformer2DModel(
        in_channels=in_channels,
        out_channels=TOKEN_CHANNELS,
        num_layers=1,
        num_single_layers=single_layers,
        attention_head_dim=32,
        num_attention_heads=5,
        axes_dims_rope=(8, 12, 12),
        joint_attention_dim=_T5_WIDTH,
        pooled_projection_dim=_CLIP_WIDTH,
        guidance_embeds=True,
    )
    _initialize(transformer)
    return transformer


def make_fill_transformer() -> Any:
    """A transformer whose input is noisy latents, latents of the masked image, and the mask."""
    return make_transformer(FILL_CHANNELS, single_layers=6)


def make_dev_transformer() -> Any:
    """A transformer whose input is noisy latents."""
    return make_transformer(TOKEN_CHANNELS, single_layers=6)


def make_clip(vocabulary_size: int, start: int, end: int) -> Any:
    """The CLIP encoder, whose pooled output modulates every block of the transformer."""
    config = CLIPTextConfig(
        vocab_size=vocabulary_size,
        hidden_size=_CLIP_WIDTH,
        intermediate_size=2 * _CLIP_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=3,
        projection_dim=_CLIP_WIDTH,
        max_position_embeddings=TEXT_TOKENS,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=end,
    )
    return CLIPTextModel(config)


def make_t5(vocabulary_size: int) -> Any:
    """The T5 encoder, whose tokens the transformer attends to."""
    config = T5Config(
        vocab_size=vocabulary_size,
        d_model=_T5_WIDTH,
        d_kv=32,
        d_ff=2 * _T5_WIDTH,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=64,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    return T5EncoderModel(config)


def make_scheduler() -> Any:
    """The scheduler that the exported models contain."""
    return FlowMatchEulerDiscreteScheduler(**_SCHEDULE)


@torch.no_grad()
def _initialize(transformer: nn.Module) -> None:
    """Initialize weights as in DiT (Peebles and Xie 2023, "adaLN-Zero"): blocks start as identity, outputs as zero."""
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
            if ".norm" in f".{name}" or name == "proj_out":
                nn.init.zeros_(module.weight)
