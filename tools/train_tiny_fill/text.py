"""The text encoders as the pipelines use them: the pooled output of CLIP and the tokens of T5."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tools.train_tiny_fill.architecture import make_clip, make_t5
from tools.train_tiny_fill.scenes import DEV_CAPTIONS, FILL_CAPTIONS, Scenes, tokenize
from tools.train_tiny_fill.vocabulary import clip_tokenizer, t5_tokenizer


class TextEncoders(nn.Module):
    """Both encoders, shared by both transformers, with their tokenizers."""

    def __init__(self) -> None:
        super().__init__()
        self.clip_tokenizer, self.t5_tokenizer = clip_tokenizer(), t5_tokenizer()
        self.clip = make_clip(
            len(self.clip_tokenizer), self.clip_tokenizer.bos_token_id, self.clip_tokenizer.eos_token_id
        )
        self.t5 = make_t5(len(self.t5_tokenizer))

    def forward(self, tokens: Prompts) -> tuple[Tensor, Tensor]:
        """Tokens of T5 (B, tokens, width) and the pooled output of CLIP (B, width), both in float32."""
        prompts = self.t5(input_ids=tokens.t5)[0]
        pooled = self.clip(input_ids=tokens.clip).pooler_output
        return prompts.float(), pooled.float()


@dataclass(frozen=True, slots=True)
class Prompts:
    """Tokenized prompts, int64 of shape (B, tokens)."""

    clip: Tensor
    t5: Tensor


class Captions:
    """The captions of all scenes on the device."""

    def __init__(self, scenes: Scenes, device: torch.device) -> None:
        self._clip = torch.from_numpy(scenes.clip_tokens).to(device)
        self._t5 = torch.from_numpy(scenes.t5_tokens).to(device)
        self._empty = tuple(
            torch.from_numpy(tokenize(tokenizer, [""])).to(device) for tokenizer in (clip_tokenizer(), t5_tokenizer())
        )

    def fill(self, rows: Tensor, dropout: float) -> Prompts:
        """A random caption for filling of each scene in `rows`. A fraction `dropout` of them is empty."""
        return self._draw(rows, 0, FILL_CAPTIONS, dropout)

    def dev(self, rows: Tensor, dropout: float) -> Prompts:
        """A random caption for text to image of each scene in `rows`. A fraction `dropout` of them is empty."""
        return self._draw(rows, FILL_CAPTIONS, DEV_CAPTIONS, dropout)

    def empty(self, count: int) -> Prompts:
        """The empty prompt, `count` times."""
        clip, t5 = self._empty
        return Prompts(clip.expand(count, -1), t5.expand(count, -1))

    def _draw(self, rows: Tensor, first: int, number: int, dropout: float) -> Prompts:
        uniform = torch.rand(2, len(rows), device=rows.device)
        which = first + (uniform[0] * number).long().clamp(max=number - 1)
        kept = (uniform[1] >= dropout)[:, None]
        empty = self.empty(len(rows))
        return Prompts(
            torch.where(kept, self._clip[rows, which].long(), empty.clip),
            torch.where(kept, self._t5[rows, which].long(), empty.t5),
        )


def join(first: Prompts, second: Prompts) -> Prompts:
    """Concatenate two batches of prompts."""
    return Prompts(torch.cat([first.clip, second.clip]), torch.cat([first.t5, second.t5]))


def freeze(module: Any) -> Any:
    """Stop training `module`, and return it."""
    return module.requires_grad_(False).eval()
