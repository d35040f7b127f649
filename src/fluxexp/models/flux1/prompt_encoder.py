"""Encodes prompts with CLIP and T5: the same bits as diffusers' `encode_prompt`, without a wait for the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import torch

from fluxexp.config.families import Family
from fluxexp.models.base import CutTokens, Prompt, clip_text, t5_text
from fluxexp.models.flux1.latents import to_device
from fluxexp.models.kernels.cuda_graph import GraphedFunction
from fluxexp.models.text.text_cache import Encoding

_COUNTED = 1024
"""Prompts whose tokens are counted once."""
Encoder = Callable[[torch.Tensor], torch.Tensor]
"""From token ids (B, tokens) to embeddings."""


class PromptEncoder:
    """The two text encoders of a FLUX.1 pipeline, with their tokenizers."""

    def __init__(self, pipeline: Any, device: torch.device, family: Family) -> None:
        """Wrap the encoders of `pipeline`.

        Args:
            pipeline: a FLUX.1 pipeline of diffusers.
            device: where the encoders run.
            family: decides the number of T5 tokens.
        """
        self._pipeline = pipeline
        self._device = device
        self._family = family
        self._clip: Encoder = partial(_clip_pooled, pipeline.text_encoder)
        # The images of a sample, and the points of a sweep, share their prompts.
        self._count_cut = lru_cache(maxsize=_COUNTED)(self._count_cut_uncached)
        self._t5: Encoder = partial(_t5_tokens, pipeline.text_encoder_2)

    def num_tokens(self, max_sequence_length: int | None) -> int:
        """T5 tokens of a prompt: by default 512 for FLUX.1-dev and Fill, and 256 for schnell."""
        return self._family.text_tokens(max_sequence_length, self._pipeline.tokenizer_2.model_max_length)

    def cut_tokens(self, prompt: Prompt, max_sequence_length: int | None) -> CutTokens:
        """Count the tokens of a prompt that `encode` cuts off at its end. Special tokens count to the limit."""
        return self._count_cut(prompt, self.num_tokens(max_sequence_length))

    def _count_cut_uncached(self, prompt: Prompt, t5_limit: int) -> CutTokens:
        pipeline = self._pipeline
        t5, clip = (
            len(tokenizer(text, truncation=False, verbose=False).input_ids)
            for tokenizer, text in ((pipeline.tokenizer_2, t5_text(prompt)), (pipeline.tokenizer, clip_text(prompt)))
        )
        return CutTokens(t5=max(0, t5 - t5_limit), clip=max(0, clip - pipeline.tokenizer_max_length))

    def encode(self, prompts: Sequence[Prompt], max_sequence_length: int | None) -> list[Encoding]:
        """Encode prompts as one batch.

        Returns:
            for each prompt, T5's embeddings (text tokens, joint_attention_dim) and CLIP's (pooled_projection_dim,).
        """
        pipeline = self._pipeline
        clip_texts, t5_texts = [clip_text(prompt) for prompt in prompts], [t5_text(prompt) for prompt in prompts]
        pooled = self._clip(self._token_ids(pipeline.tokenizer, clip_texts, pipeline.tokenizer_max_length))
        tokens = self._t5(self._token_ids(pipeline.tokenizer_2, t5_texts, self.num_tokens(max_sequence_length)))
        return list(zip(tokens, pooled, strict=True))

    def capture(self, on_failure: Callable[[Exception], None]) -> None:
        """Capture the encoders as CUDA graphs: their thousand launches would fill the GPU's queue during denoising.

        Args:
            on_failure: called with the error if an encoder cannot be captured; it then runs without a graph.
        """
        self._clip, self._t5 = (
            GraphedFunction(each, captures_first_call=True, on_failure=on_failure) for each in (self._clip, self._t5)
        )

    def free_memory(self) -> None:
        """Drop captured graphs; the next call captures them again."""
        for encoder in (self._clip, self._t5):
            if isinstance(encoder, GraphedFunction):
                encoder.forget()

    def _token_ids(self, tokenizer: Any, texts: Sequence[str], length: int) -> torch.Tensor:
        ids = tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return to_device(ids.input_ids, self._device)


def _clip_pooled(clip: Any, ids: torch.Tensor) -> torch.Tensor:
    return clip(ids, output_hidden_states=False).pooler_output.to(clip.dtype)  # type: ignore[no-any-return]


def _t5_tokens(t5: Any, ids: torch.Tensor) -> torch.Tensor:
    return t5(ids, output_hidden_states=False)[0].to(t5.dtype)  # type: ignore[no-any-return]
