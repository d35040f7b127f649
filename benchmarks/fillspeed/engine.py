"""What every engine that is compared looks like, and which ones there are. Imports an engine only to make it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch

from fillspeed.cases import Case
from fluxexp.records import Sample


@dataclass(slots=True)
class Made:
    """What making a stretch of samples told besides its wall time."""

    batches: list[int]
    """Images of each batch."""
    step_s: list[float] = field(default_factory=list)
    """Seconds of a denoising step of each batch."""
    ends_s: list[float] = field(default_factory=list)
    """When the device was done with each batch, in seconds since the epoch."""


class Engine(Protocol):
    """A loaded model with a way to make images with it. One process holds one engine."""

    device: torch.device

    @property
    def pipeline(self) -> Any:
        """Diffusers' pipeline, for its configs."""
        ...

    @property
    def notes(self) -> list[str]:
        """What was done to the model, in order."""
        ...

    def make(self, samples: Sequence[Sample], number: int, case: Case, batch: int, directory: Path) -> Made:
        """Make an image file of each of the first `number` samples; returns when all are on disk."""
        ...


def missing(name: str) -> str | None:
    """Why engine `name` cannot be measured here; None if it can.

    Raises:
        ValueError: there is no such engine.
    """
    kind = name.partition(":")[0]
    if kind not in ("recipe", "recipe+compile", "recipe+cache-dit", "xfuser", "fluxexp"):
        raise ValueError(f"no engine is called {name!r}")
    if kind == "recipe+cache-dit" and find_spec("cache_dit") is None:
        return "cache-dit is not installed"
    if kind == "xfuser":
        return "xfuser has no pipeline for Fill" if find_spec("xfuser") else "xfuser is not installed"
    return None


def make_engine(name: str, is_full_size: bool, device: torch.device, pixels: int) -> Engine:
    """Load engine `name`: a way of the recipe, or `fluxexp:PRESET[,KEY=VALUE...]` with a preset of `optimization`.

    Args:
        pixels: of the largest image, which memory is left for.
    """
    kind, _, preset = name.partition(":")
    if kind == "fluxexp":
        from fillspeed.framework import Framework

        return Framework(preset or "auto", is_full_size, pixels)
    from fillspeed.recipe import Recipe

    return Recipe(kind, is_full_size, device)
