"""Configs of the FLUX models that fluxexp can build without a download.

The numbers come from the config files of the published repositories (black-forest-labs/FLUX.1-dev, FLUX.1-Fill-dev,
FLUX.1-schnell). Tests compare the number of parameters with the published one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fluxexp.config.families import FAMILIES, Family, family_of_channels

SIGLIP: Mapping[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
"""That of FLUX.1-Redux-dev."""
CLIP_VISION: Mapping[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": 768,
}
"""That of clip-vit-large-patch14, with which the IP-Adapters of XLabs were trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLayout:
    """Configs of a FLUX pipeline's components, as their classes take them."""

    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    clip: Mapping[str, Any]
    t5: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    text_tokens: int
    """T5 tokens that the model was trained with."""
    siglip: Mapping[str, Any] = field(default_factory=lambda: SIGLIP)
    """The image encoder of families with Redux."""
    clip_vision: Mapping[str, Any] = field(default_factory=lambda: CLIP_VISION)
    """The image encoder of an IP-Adapter."""

    @property
    def packed_channels(self) -> int:
        """Channels of one packed latent."""
        return 4 * int(self.vae["latent_channels"])

    @property
    def vae_scale(self) -> int:
        """Pixels to one latent, along a side."""
        return 1 << (len(self.vae["block_out_channels"]) - 1)

    @property
    def family(self) -> Family:
        """The first family that a transformer of this layout fits."""
        return family_of_channels(self.transformer["in_channels"], self.packed_channels, self.vae_scale)


_DYNAMIC_SHIFT = {
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}

FLUX_DEV = ModelLayout(
    transformer={
        "patch_size": 1,
        "in_channels": 64,
        "out_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": True,
        "axes_dims_rope": (16, 56, 56),
    },
    vae={
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "latent_channels": 16,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "sample_size": 1024,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    clip={
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
        "projection_dim": 768,
        "hidden_act": "quick_gelu",
    },
    t5={
        "vocab_size": 32128,
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
    },
    scheduler=_DYNAMIC_SHIFT,
    text_tokens=512,
)

_FILL_CHANNELS = FAMILIES["flux_fill"].in_channels(FLUX_DEV.packed_channels, FLUX_DEV.vae_scale)
FLUX_FILL = replace(FLUX_DEV, transformer={**FLUX_DEV.transformer, "in_channels": _FILL_CHANNELS})

FLUX_SCHNELL = replace(
    FLUX_DEV,
    transformer={**FLUX_DEV.transformer, "guidance_embeds": False},
    scheduler={"num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False},
    text_tokens=256,
)

_CONTROL_CHANNELS = FAMILIES["flux_control"].in_channels(FLUX_DEV.packed_channels, FLUX_DEV.vae_scale)
FLUX_CONTROL = replace(FLUX_DEV, transformer={**FLUX_DEV.transformer, "in_channels": _CONTROL_CHANNELS})


def scaled_down(layout: ModelLayout) -> ModelLayout:
    """Shrink every component of `layout` to a size for a CPU. The code takes the same paths as at full size."""
    return replace(
        layout,
        transformer={
            **layout.transformer,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "pooled_projection_dim": 32,
            "axes_dims_rope": (4, 6, 6),
        },
        vae={**layout.vae, "block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4},
        clip={
            **layout.clip,
            "vocab_size": 512,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "projection_dim": 32,
        },
        t5={**layout.t5, "vocab_size": 512, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2},
        text_tokens=32,
        siglip={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
        },
        clip_vision={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
            "projection_dim": 24,
        },
    )


def _small(layout: ModelLayout) -> ModelLayout:
    """`layout` scaled down, with room for a caption: the tokenizers of random weights know single characters."""
    return replace(scaled_down(layout), text_tokens=128)


LAYOUTS: Mapping[str, ModelLayout] = {
    "flux_dev": FLUX_DEV,
    "flux_fill": FLUX_FILL,
    "flux_control": FLUX_CONTROL,
    "flux_schnell": FLUX_SCHNELL,
    "small_dev": _small(FLUX_DEV),
    "small_fill": _small(FLUX_FILL),
    "small_control": _small(FLUX_CONTROL),
}
"""Layouts by the values of `model.layout`. `config/families.py` says which family takes which."""
