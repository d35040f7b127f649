"""Names and shapes of all tensors of a component, from its config.json. Never imports torch.

They are those of the classes of diffusers and transformers; a test compares them. A config that these layouts do not
cover has no layout: then the loader, which compares with the real modules, finds what is missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fluxexp.config.weight_headers import Shapes

Config = Mapping[str, Any]
Tensor = tuple[str, tuple[int, ...]]
_TIME_CHANNELS = 256
_HINT_WIDTH, _HINT_LAYERS = 16, 6
"""Convolutions of a ControlNet that reads pixels: their channels, and their number between the first and the last."""


def flux_layout(config: Config) -> Shapes | None:
    """Tensors of diffusers' FluxTransformer2DModel."""
    width = config["attention_head_dim"] * config["num_attention_heads"]
    patch = config.get("patch_size", 1) ** 2
    tensors = [
        *_flux_body(config, width),
        *_linear("norm_out.linear", width, 2 * width),
        *_linear("proj_out", width, patch * (config.get("out_channels") or config["in_channels"])),
    ]
    return dict(tensors)


def controlnet_layout(config: Config) -> Shapes | None:
    """Tensors of diffusers' FluxControlNetModel."""
    width, modes = config["attention_head_dim"] * config["num_attention_heads"], config.get("num_mode")
    tensors = [*_flux_body(config, width), *_linear("controlnet_x_embedder", config["in_channels"], width)]
    for name, number in (("blocks", config["num_layers"]), ("single_blocks", config["num_single_layers"])):
        for index in range(number):
            tensors += _linear(f"controlnet_{name}.{index}", width, width)
    if modes is not None:
        tensors.append(("controlnet_mode_embedder.weight", (modes, width)))
    if (channels := config.get("conditioning_embedding_channels")) is not None:
        tensors += _conv("input_hint_block.conv_in", 3, _HINT_WIDTH)
        for index in range(_HINT_LAYERS):
            tensors += _conv(f"input_hint_block.blocks.{index}", _HINT_WIDTH, _HINT_WIDTH)
        tensors += _conv("input_hint_block.conv_out", _HINT_WIDTH, channels)
    return dict(tensors)


def _flux_body(config: Config, width: int) -> Iterator[Tensor]:
    """What transformer and ControlNet have in common: embedders and blocks."""
    head = config["attention_head_dim"]
    embedders = {"timestep_embedder": _TIME_CHANNELS, "text_embedder": config["pooled_projection_dim"]}
    if config.get("guidance_embeds", False):
        embedders["guidance_embedder"] = _TIME_CHANNELS
    yield from _linear("x_embedder", config["in_channels"], width)
    yield from _linear("context_embedder", config["joint_attention_dim"], width)
    for name, channels in embedders.items():
        yield from _linear(f"time_text_embed.{name}.linear_1", channels, width)
        yield from _linear(f"time_text_embed.{name}.linear_2", width, width)
    for number in range(config["num_layers"]):
        yield from _double_block(f"transformer_blocks.{number}", width, head)
    for number in range(config["num_single_layers"]):
        yield from _single_block(f"single_transformer_blocks.{number}", width, head)


def _double_block(block: str, width: int, head: int) -> Iterator[Tensor]:
    for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
        yield from _linear(f"{block}.attn.{name}", width, width)
    for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
        yield f"{block}.attn.{name}.weight", (head,)
    for suffix in ("", "_context"):
        yield from _linear(f"{block}.norm1{suffix}.linear", width, 6 * width)
        yield from _linear(f"{block}.ff{suffix}.net.0.proj", width, 4 * width)
        yield from _linear(f"{block}.ff{suffix}.net.2", 4 * width, width)


def _single_block(block: str, width: int, head: int) -> Iterator[Tensor]:
    for name in ("to_q", "to_k", "to_v"):
        yield from _linear(f"{block}.attn.{name}", width, width)
    for name in ("norm_q", "norm_k"):
        yield f"{block}.attn.{name}.weight", (head,)
    yield from _linear(f"{block}.norm.linear", width, 3 * width)
    yield from _linear(f"{block}.proj_mlp", width, 4 * width)
    yield from _linear(f"{block}.proj_out", 5 * width, width)


def vae_layout(config: Config) -> Shapes | None:
    """Tensors of diffusers' AutoencoderKL with plain convolution blocks, as FLUX has it."""
    if {*config["down_block_types"]} != {"DownEncoderBlock2D"} or {*config["up_block_types"]} != {"UpDecoderBlock2D"}:
        return None
    widths, latent, layers = config["block_out_channels"], config["latent_channels"], config["layers_per_block"]
    attention = config.get("mid_block_add_attention", True)
    tensors = [
        *_conv("encoder.conv_in", config.get("in_channels", 3), widths[0]),
        *_conv("decoder.conv_in", latent, widths[-1]),
        *_norm("encoder.conv_norm_out", widths[-1]),
        *_norm("decoder.conv_norm_out", widths[0]),
        *_conv("encoder.conv_out", widths[-1], 2 * latent),
        *_conv("decoder.conv_out", widths[0], config.get("out_channels", 3)),
        *_stages("encoder.down_blocks", widths, widths[0], layers, "downsamplers"),
        *_stages("decoder.up_blocks", widths[::-1], widths[-1], layers + 1, "upsamplers"),
        *_middle("encoder.mid_block", widths[-1], attention),
        *_middle("decoder.mid_block", widths[-1], attention),
    ]
    if config.get("use_quant_conv", True):
        tensors += _conv("quant_conv", 2 * latent, 2 * latent, 1)
    if config.get("use_post_quant_conv", True):
        tensors += _conv("post_quant_conv", latent, latent, 1)
    return dict(tensors)


def _stages(name: str, widths: list[int], channels: int, layers: int, sampler: str) -> Iterator[Tensor]:
    for number, width in enumerate(widths):
        for layer in range(layers):
            yield from _resnet(f"{name}.{number}.resnets.{layer}", channels, width)
            channels = width
        if number + 1 < len(widths):
            yield from _conv(f"{name}.{number}.{sampler}.0.conv", width, width)


def _middle(name: str, width: int, attention: bool) -> Iterator[Tensor]:
    for number in range(2):
        yield from _resnet(f"{name}.resnets.{number}", width, width)
    if attention:
        yield from _norm(f"{name}.attentions.0.group_norm", width)
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            yield from _linear(f"{name}.attentions.0.{part}", width, width)


def _resnet(name: str, channels: int, width: int) -> Iterator[Tensor]:
    yield from _norm(f"{name}.norm1", channels)
    yield from _conv(f"{name}.conv1", channels, width)
    yield from _norm(f"{name}.norm2", width)
    yield from _conv(f"{name}.conv2", width, width)
    if channels != width:
        yield from _conv(f"{name}.conv_shortcut", channels, width, 1)


def clip_layout(config: Config) -> Shapes | None:
    """Tensors of transformers' CLIPTextModel, without the prefix `text_model.` that older files have."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    tensors: list[Tensor] = [
        ("embeddings.token_embedding.weight", (config["vocab_size"], width)),
        ("embeddings.position_embedding.weight", (config["max_position_embeddings"], width)),
        *_norm("final_layer_norm", width),
    ]
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layers.{number}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            tensors += _linear(f"{layer}.self_attn.{name}", width, width)
        tensors += [*_linear(f"{layer}.mlp.fc1", width, inner), *_linear(f"{layer}.mlp.fc2", inner, width)]
        tensors += [*_norm(f"{layer}.layer_norm1", width), *_norm(f"{layer}.layer_norm2", width)]
    return dict(tensors)


def t5_layout(config: Config) -> Shapes | None:
    """Tensors of transformers' T5EncoderModel."""
    if config.get("model_type") != "t5":
        return None
    width, inner, feed = config["d_model"], config["num_heads"] * config["d_kv"], config["d_ff"]
    gated = config.get("feed_forward_proj", "relu").startswith("gated-")
    buckets = config.get("relative_attention_num_buckets", 32)
    shapes: dict[str, tuple[int, ...]] = {
        "shared.weight": (config["vocab_size"], width),
        "encoder.final_layer_norm.weight": (width,),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (buckets, config["num_heads"]),
    }
    for number in range(config["num_layers"]):
        block = f"encoder.block.{number}.layer"
        shapes |= {f"{block}.0.SelfAttention.{name}.weight": (inner, width) for name in "qkv"}
        shapes[f"{block}.0.SelfAttention.o.weight"] = (width, inner)
        shapes |= {f"{block}.{part}.layer_norm.weight": (width,) for part in (0, 1)}
        inputs = ("wi_0", "wi_1") if gated else ("wi",)
        shapes |= {f"{block}.1.DenseReluDense.{name}.weight": (feed, width) for name in inputs}
        shapes[f"{block}.1.DenseReluDense.wo.weight"] = (width, feed)
    return shapes


def siglip_layout(config: Config) -> Shapes | None:
    """Tensors of transformers' SiglipVisionModel, without the prefix `vision_model.` that older files have."""
    if config.get("model_type") != "siglip_vision_model":
        return None
    width, side, patch = config["hidden_size"], config["image_size"], config["patch_size"]
    shapes: dict[str, tuple[int, ...]] = dict(_conv("embeddings.patch_embedding", 3, width, patch))
    shapes["embeddings.position_embedding.weight"] = ((side // patch) ** 2, width)
    shapes |= dict(_vision_layers(config))
    if config.get("vision_use_head", True):
        shapes |= {"head.probe": (1, 1, width), "head.attention.in_proj_weight": (3 * width, width)}
        shapes |= {"head.attention.in_proj_bias": (3 * width,), **dict(_norm("head.layernorm", width))}
        shapes |= dict(_linear("head.attention.out_proj", width, width))
        shapes |= dict(_mlp("head.mlp", width, config["intermediate_size"]))
    return shapes


def clip_vision_layout(config: Config) -> Shapes | None:
    """Tensors of transformers' CLIPVisionModelWithProjection, without the prefix `vision_model.`.

    The config may be that of the whole CLIP.
    """
    vision = config.get("vision_config", config)
    width, side, patch = vision["hidden_size"], vision["image_size"], vision["patch_size"]
    return {
        "embeddings.class_embedding": (width,),
        "embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "embeddings.position_embedding.weight": ((side // patch) ** 2 + 1, width),
        **dict(_norm("pre_layrnorm", width)),
        **dict(_vision_layers(vision)),
        "visual_projection.weight": (vision["projection_dim"], width),
    }


def _vision_layers(config: Config) -> Iterator[Tensor]:
    width = config["hidden_size"]
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layers.{number}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{layer}.self_attn.{name}", width, width)
        yield from _mlp(f"{layer}.mlp", width, config["intermediate_size"])
        for name in ("layer_norm1", "layer_norm2"):
            yield from _norm(f"{layer}.{name}", width)
    yield from _norm("post_layernorm", width)


def redux_layout(config: Config) -> Shapes:
    """Tensors of diffusers' ReduxImageEncoder. Its config may leave out the sizes of FLUX.1-Redux."""
    width, text = config.get("redux_dim", 1152), config.get("txt_in_features", 4096)
    return dict([*_linear("redux_up", width, 3 * text), *_linear("redux_down", 3 * text, text)])


def _mlp(name: str, width: int, inner: int) -> list[Tensor]:
    return [*_linear(f"{name}.fc1", width, inner), *_linear(f"{name}.fc2", inner, width)]


def _linear(name: str, inputs: int, outputs: int) -> list[Tensor]:
    return [(f"{name}.weight", (outputs, inputs)), (f"{name}.bias", (outputs,))]


def _conv(name: str, inputs: int, outputs: int, side: int = 3) -> list[Tensor]:
    return [(f"{name}.weight", (outputs, inputs, side, side)), (f"{name}.bias", (outputs,))]


def _norm(name: str, width: int) -> list[Tensor]:
    return [(f"{name}.weight", (width,)), (f"{name}.bias", (width,))]


_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_ATTENTION = re.compile(r"(.*\.attentions\.\d+\.)(query|key|value|proj_attn)(\.\w+)")


def current_name(name: str) -> str:
    """The name that a tensor of an older file has in the module: the libraries rename it when they load it."""
    if old := _OLD_ATTENTION.fullmatch(name):
        return f"{old[1]}{_OLD_NAMES[old[2]]}{old[3]}"
    return name.removeprefix("text_model.")


VISION_PREFIX = "vision_model."
NOT_VISION = re.compile(r"text_model\..*|text_projection\..*|logit_(scale|bias)|.*\.position_ids")
"""Tensors of CLIP and SigLIP that do not belong to their image encoders."""

Layout = Callable[[Config], Shapes | None]

OTHER_TENSORS: Mapping[str, re.Pattern[str]] = {
    "text_encoder": re.compile(r"embeddings\.position_ids|vision_model\..*|.*_projection\.weight|logit_scale"),
    "text_encoder_2": re.compile(r"decoder\..*|lm_head\..*|(encoder|decoder)\.embed_tokens\.weight"),
}
"""Tensors that files of the whole CLIP or T5 have and that their text encoders do not use, by component."""
