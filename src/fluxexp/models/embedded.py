"""The models that fluxexp makes itself: FLUX in miniature, with fixed random weights, in the diffusers layout.

They have every part of their big siblings (CLIP, T5, tokenizers, VAE, transformer with guidance embedding) and are
loaded by the same code. They are made on first use, into the user's cache directory.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxFillPipeline, FluxPipeline
from diffusers.models import FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from fluxexp.records import content_hash

_LATENT_CHANNELS = 16
_VAE_SCALE = 8
_TEXT_TOKENS = 64
_CHARACTERS = [chr(code) for code in range(32, 127)]
_VAE = {
    "block_out_channels": (8, 16, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": _LATENT_CHANNELS,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 128,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
_TRANSFORMER = {
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "axes_dims_rope": (4, 6, 6),
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "guidance_embeds": True,
    "out_channels": _LATENT_CHANNELS * 4,
}
_CLIP = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "feed_forward_proj": "gated-gelu"}
# FLUX.1-dev's own schedule.
_SCHEDULER = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
_IN_CHANNELS = {
    "tiny_dev": _LATENT_CHANNELS * 4,
    "tiny_fill": 2 * _LATENT_CHANNELS * 4 + _VAE_SCALE**2 * 4,  # latents, masked-image latents, packed mask
}
_PIPELINES: dict[str, Any] = {"tiny_dev": FluxPipeline, "tiny_fill": FluxFillPipeline}
_RECIPE = content_hash([1, _VAE, _TRANSFORMER, _CLIP, _T5, _SCHEDULER, _TEXT_TOKENS])


def embedded_directory(name: str) -> Path:
    """Directory of the embedded model `name`, made if it is not there yet; safe for several processes at once."""
    root = cache_root()
    target = root / f"{name}-{_RECIPE}"
    if (target / "model_index.json").is_file():
        return target
    root.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=root, prefix=f".{name}-"))
    try:
        _make_pipeline(name, scratch).save_pretrained(scratch, safe_serialization=True)
        _move_into_place(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def cache_root() -> Path:
    """`$FLUXEXP_CACHE`, else `fluxexp` in the user's cache directory."""
    if override := os.environ.get("FLUXEXP_CACHE"):
        return Path(override)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fluxexp"


def _move_into_place(scratch: Path, target: Path) -> None:
    try:
        scratch.rename(target)
    except OSError:
        if not (target / "model_index.json").is_file():  # else another process was first, with the same bytes
            raise


def _make_pipeline(name: str, scratch: Path) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _PIPELINES[name](
            scheduler=FlowMatchEulerDiscreteScheduler(**_SCHEDULER),
            text_encoder=CLIPTextModel(_clip_config()),
            tokenizer=_clip_tokenizer(),
            text_encoder_2=T5EncoderModel(T5Config(vocab_size=len(_t5_vocabulary()), **_T5)),
            tokenizer_2=T5Tokenizer(vocab=_t5_vocabulary(), extra_ids=0, model_max_length=_TEXT_TOKENS),
            vae=AutoencoderKL(**_VAE),
            transformer=FluxTransformer2DModel(in_channels=_IN_CHANNELS[name], **_TRANSFORMER),
        )


def _clip_vocabulary() -> dict[str, int]:
    words = ["<|startoftext|>", "<|endoftext|>", *_CHARACTERS[1:], *(f"{c}</w>" for c in _CHARACTERS[1:])]
    return {word: index for index, word in enumerate(words)}


def _clip_config() -> CLIPTextConfig:
    vocabulary = _clip_vocabulary()
    return CLIPTextConfig(
        vocab_size=len(vocabulary),
        max_position_embeddings=77,
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
        pad_token_id=vocabulary["<|endoftext|>"],
        projection_dim=32,
        **_CLIP,
    )


def _clip_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer(vocab=_clip_vocabulary(), merges=[], model_max_length=77)


def _t5_vocabulary() -> list[tuple[str, float]]:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return special + [("▁", -2.0)] + [(character, -3.0) for character in _CHARACTERS[1:]]
