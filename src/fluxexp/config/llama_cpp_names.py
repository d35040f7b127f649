"""Where the tensors of T5 are in GGUF files, which have the names of llama.cpp. Never imports torch.

The names: https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/tensor_mapping.py
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from fluxexp.config.bfl_names import Piece
from fluxexp.config.weight_headers import Shapes

T5_MARK = "enc.output_norm.weight"
"""A tensor that every such file has."""
_TOP: Mapping[str, str] = {
    "shared": "token_embd",
    "encoder.final_layer_norm": "enc.output_norm",
}
_LAYERS: Mapping[str, str] = {
    "0.layer_norm": "attn_norm",
    "0.SelfAttention.q": "attn_q",
    "0.SelfAttention.k": "attn_k",
    "0.SelfAttention.v": "attn_v",
    "0.SelfAttention.o": "attn_o",
    "0.SelfAttention.relative_attention_bias": "attn_rel_b",
    "1.layer_norm": "ffn_norm",
    "1.DenseReluDense.wi_0": "ffn_gate",
    "1.DenseReluDense.wi_1": "ffn_up",
    "1.DenseReluDense.wi": "ffn_up",
    "1.DenseReluDense.wo": "ffn_down",
}
_BLOCK = re.compile(r"encoder\.block\.(\d+)\.layer\.(.+)")


def t5_pieces(layout: Shapes) -> Mapping[str, Piece]:
    """Return the piece of each tensor of a T5 encoder whose tensors are `layout`."""
    return {name: Piece(source=_source(name.removesuffix(".weight"))) for name in layout}


def _source(layer: str) -> str:
    block = _BLOCK.fullmatch(layer)
    name = _TOP[layer] if block is None else f"enc.blk.{block[1]}.{_LAYERS[block[2]]}"
    return f"{name}.weight"
