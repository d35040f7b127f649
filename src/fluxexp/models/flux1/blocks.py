"""The transformer's blocks, with their modulations as arguments instead of computed inside from the embedding.

They call the library's own layers in the library's order of operations: in eager mode they give the same bits. Text and
image stay one stream through the single blocks. The blocks know no schedule.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb

from fluxexp.models.flux1.ip_adapter import BlockPicture, attended_picture
from fluxexp.models.kernels.attention_types import Attend, Rope

_HALF_MAX = 65504
"""The largest finite float16. The library clips to it: the residual stream of FLUX exceeds it in some blocks."""


def library_attention(processor: Any) -> Attend:
    """Attention with the backend that the library's processor is set to when the function is called."""

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = dispatch_attention_fn(query, key, value, backend=processor._attention_backend)
        return out

    return attend


class DoubleBlock(torch.nn.Module):
    """A `FluxTransformerBlock`: text and image have separate weights and attend to each other."""

    def __init__(self, block: Any, attend: Attend | None = None) -> None:
        super().__init__()
        self.block = block
        self.attend = attend or library_attention(block.attn.processor)

    def forward(
        self,
        image: torch.Tensor,
        text: torch.Tensor,
        image_mod: torch.Tensor,
        text_mod: torch.Tensor,
        rope: Rope,
        picture: BlockPicture | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Image and text tokens after the block.

        Args:
            image: tokens (B, image tokens, width); `text` likewise.
            image_mod: shift, scale and gate of attention, then of the MLP (B, 6 * width); `text_mod` likewise.
            rope: of the text tokens, then of the image tokens.
            picture: what the image tokens attend to in addition (IP-Adapter).
        """
        block = self.block
        image_parts, text_parts = image_mod.chunk(6, dim=1), text_mod.chunk(6, dim=1)
        image_normed = _modulated(block.norm1.norm(image), *image_parts[:2])
        text_normed = _modulated(block.norm1_context.norm(text), *text_parts[:2])
        image_attended, text_attended, added = self._attention(image_normed, text_normed, rope, picture)
        image = image + image_parts[2].unsqueeze(1) * image_attended
        image_mlp = self._mlp(block.ff, block.norm2(image), *image_parts[3:5])
        image = image + image_parts[5].unsqueeze(1) * image_mlp
        if added is not None:
            image = image + added
        text = text + text_parts[2].unsqueeze(1) * text_attended
        text_mlp = self._mlp(block.ff_context, block.norm2_context(text), *text_parts[3:5])
        text = text + text_parts[5].unsqueeze(1) * text_mlp
        return image, _clipped(text)

    def _attention(
        self, image: torch.Tensor, text: torch.Tensor, rope: Rope, picture: BlockPicture | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """What attention makes of image and text, and what is added for `picture` after the MLP."""
        attn = self.block.attn
        heads = (-1, attn.head_dim)
        # Text comes before image, as in `rope`. The order of operations is the library's: norm, concatenate, rotate.
        image_query = _query(attn, image)
        query = torch.cat([attn.norm_added_q(attn.add_q_proj(text).unflatten(-1, heads)), image_query], dim=1)
        key = torch.cat([attn.norm_added_k(attn.add_k_proj(text).unflatten(-1, heads)), _key(attn, image)], dim=1)
        value = torch.cat([attn.add_v_proj(text).unflatten(-1, heads), attn.to_v(image).unflatten(-1, heads)], dim=1)
        attended = _attended(self.attend, query, key, value, rope)
        of_text, of_image = attended.split_with_sizes([text.shape[1], image.shape[1]], dim=1)
        if picture is not None:  # here the library keeps the layout
            return attn.to_out[0](of_image), attn.to_add_out(of_text), attended_picture(attn, image_query, picture)
        # Contiguous, as in the library: another memory layout may choose another kernel, with other roundings.
        return attn.to_out[0](of_image.contiguous()), attn.to_add_out(of_text.contiguous()), None

    def _mlp(self, layers: Any, normed: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        modulated = _modulated(normed, shift, scale)
        return layers.net[2](F.gelu(layers.net[0].proj(modulated), approximate="tanh"))  # type: ignore[no-any-return]


class SingleBlock(torch.nn.Module):
    """A `FluxSingleTransformerBlock`: one stream of text and image; attention and MLP read the same norm."""

    def __init__(self, block: Any, attend: Attend | None = None) -> None:
        super().__init__()
        self.block = block
        self.attend = attend or library_attention(block.attn.processor)

    def forward(self, tokens: torch.Tensor, mod: torch.Tensor, rope: Rope) -> torch.Tensor:
        """Tokens after the block.

        Args:
            tokens: text, then image (B, text and image tokens, width).
            mod: shift, scale and gate (B, 3 * width).
            rope: of all tokens.
        """
        block, attn = self.block, self.block.attn
        shift, scale, gate = mod.chunk(3, dim=1)
        normed = _modulated(block.norm.norm(tokens), shift, scale)
        mlp = F.gelu(block.proj_mlp(normed), approximate="tanh")
        value = attn.to_v(normed).unflatten(-1, (-1, attn.head_dim))
        attended = _attended(self.attend, _query(attn, normed), _key(attn, normed), value, rope)
        return _clipped(tokens + gate.unsqueeze(1) * block.proj_out(torch.cat([attended, mlp], dim=2)))


def _query(attn: Any, tokens: torch.Tensor) -> torch.Tensor:
    return attn.norm_q(attn.to_q(tokens).unflatten(-1, (-1, attn.head_dim)))  # type: ignore[no-any-return]


def _key(attn: Any, tokens: torch.Tensor) -> torch.Tensor:
    return attn.norm_k(attn.to_k(tokens).unflatten(-1, (-1, attn.head_dim)))  # type: ignore[no-any-return]


def _attended(attend: Attend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rope: Rope) -> torch.Tensor:
    """Attention with rotated queries and keys: (B, tokens, width). RoPE works in float32, hence the cast back."""
    query = apply_rotary_emb(query, rope, sequence_dim=1)
    key = apply_rotary_emb(key, rope, sequence_dim=1)
    return attend(query, key, value).flatten(2, 3).to(query.dtype)


def _modulated(normed: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return normed * (1 + scale[:, None]) + shift[:, None]


def _clipped(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.clip(-_HALF_MAX, _HALF_MAX) if tokens.dtype == torch.float16 else tokens
