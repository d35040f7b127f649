"""The LoRAs, and the settings of their training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fluxexp.data.shapes.styles import Style
from tools.train_tiny_fill.settings import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """One LoRA and its training."""

    base: str
    """The embedded model that it changes."""
    style: Style | None
    """The style of the targets. None: a Control LoRA, which learns to follow the outlines of scenes."""
    rank: int
    """Rank of the change of each linear layer in the blocks."""
    input_rank: int = 0
    """Rank of the change of the input layer. 0: not changed."""
    seed: int = 2
    """Seed of the scenes and of the training."""
    scenes: int
    """Number of scenes."""
    size: int = 128
    """Side of the scenes, in pixels."""
    prompt_dropout: float = 0.1
    """Fraction of prompts that are empty."""
    guidance: float = 1.0
    """Input of the guidance embedding. At 1, the distilled models predict what they would without guidance."""
    stage: Stage


def _stage(steps: int) -> Stage:
    return Stage(steps=steps, batch=16, rate=3e-3, ema=0.97, warmup=20, log_every=20)


LORAS: Mapping[str, LoraSettings] = {
    "tiny_outlined": LoraSettings(base="tiny_fill", style="outlined", rank=8, scenes=768, stage=_stage(260)),
    "tiny_pastel": LoraSettings(base="tiny_fill", style="pastel", rank=8, scenes=512, stage=_stage(160)),
    "tiny_control": LoraSettings(base="tiny_dev", style=None, rank=48, input_rank=64, scenes=1024, stage=_stage(500)),
}
"""By the name of the file."""
