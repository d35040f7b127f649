"""Layouts of models that are small enough for a CPU."""

from __future__ import annotations

from dataclasses import replace

from fluxexp.models.loading.model_layouts import ModelLayout


def scaled_down(layout: ModelLayout) -> ModelLayout:
    """Shrink every component of `layout`. The code takes the same paths as at full size."""
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
    )
