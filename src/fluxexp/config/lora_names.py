"""The layers of FLUX.1 and CLIP by the names that LoRA formats give them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_DOUBLE: Mapping[str, Sequence[str]] = {
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn_proj": ("attn.to_out.0",),
    "txt_attn_proj": ("attn.to_add_out",),
    "img_mlp_0": ("ff.net.0.proj",),
    "img_mlp_2": ("ff.net.2",),
    "txt_mlp_0": ("ff_context.net.0.proj",),
    "txt_mlp_2": ("ff_context.net.2",),
    "img_mod_lin": ("norm1.linear",),
    "txt_mod_lin": ("norm1_context.linear",),
    # XLabs
    "processor_qkv_lora1": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "processor_qkv_lora2": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "processor_proj_lora1": ("attn.to_out.0",),
    "processor_proj_lora2": ("attn.to_add_out",),
}
_SINGLE: Mapping[str, Sequence[str]] = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation_lin": ("norm.linear",),
    # XLabs
    "processor_qkv_lora": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "processor_proj_lora": ("proj_out",),
}
_OTHER: Mapping[str, str] = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in_in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in_out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in_in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in_out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in_in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in_out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer_linear": "proj_out",
    "final_layer_adaLN_modulation_1": "norm_out.linear",
}
_BFL_BLOCK = re.compile(r"(double|single)_blocks_(\d+)_(\w+)")
_BFL_PREFIX = re.compile(r"^(lora_unet_|base_model_model_|base_model_|diffusion_model_)")
_CLIP = re.compile(r"lora_te1?_text_model_encoder_layers_(\d+)_(self_attn|mlp)_(q_proj|k_proj|v_proj|out_proj|fc1|fc2)")
_MIXED = re.compile(r"lora_transformer_(single_transformer_blocks|transformer_blocks)_(\d+)_(\w+)")
_IN_BLOCK = {name.replace(".", "_"): name for table in (_DOUBLE, _SINGLE) for names in table.values() for name in names}
_MIXED_OTHER = {name.replace(".", "_"): name for name in _OTHER.values()}


def bfl_layers(name: str) -> Sequence[str]:
    """The layers of `FluxTransformer2DModel` that have the rows of a layer of BFL's code, in order; none if unknown."""
    plain = _BFL_PREFIX.sub("", name.replace(".", "_"))
    if other := _OTHER.get(plain):
        return (other,)
    match = _BFL_BLOCK.fullmatch(plain)
    if match is None:
        return ()
    kind, number, part = match.groups()
    table, blocks = (_DOUBLE, "transformer_blocks") if kind == "double" else (_SINGLE, "single_transformer_blocks")
    return [f"{blocks}.{number}.{layer}" for layer in table.get(part, ())]


def diffusers_layer(name: str) -> str | None:
    """The layer that a name with underscores (`lora_transformer_transformer_blocks_0_attn_to_q`) means, or None."""
    if match := _MIXED.fullmatch(name):
        blocks, number, part = match.groups()
        return f"{blocks}.{number}.{_IN_BLOCK[part]}" if part in _IN_BLOCK else None
    return _MIXED_OTHER.get(name.removeprefix("lora_transformer_")) if name.startswith("lora_transformer_") else None


def clip_layer(name: str) -> str | None:
    """The layer of CLIP that a name of kohya's format means, or None."""
    plain = name.replace(".", "_").replace("text_encoders_clip_l_transformer_", "lora_te_")
    match = _CLIP.fullmatch(plain)
    return f"encoder.layers.{match[1]}.{match[2]}.{match[3]}" if match else None
