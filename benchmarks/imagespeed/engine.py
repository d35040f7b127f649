"""The interface of engines, and the list of engines. Imports the code of an engine only when it makes the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch

from fluxexp.records import Sample
from imagespeed.cases import Case
from imagespeed.models import BenchmarkModel


@dataclass(slots=True)
class StretchResult:
    """What an engine measured in a stretch, besides the wall time."""

    batches: list[int]
    """Number of images of each batch."""
    step_s: list[float] = field(default_factory=list)
    """Mean seconds per denoising step of each batch."""
    ends_s: list[float] = field(default_factory=list)
    """Time at which the device finished each batch, in seconds since the epoch."""


class Engine(Protocol):
    """A loaded model, and code that makes images with it. A process has one engine."""

    device: torch.device

    @property
    def pipeline(self) -> Any:
        """The diffusers pipeline, for its configs."""
        ...

    @property
    def notes(self) -> list[str]:
        """The optimizations of the model, in order."""
        ...

    def make(self, samples: Sequence[Sample], number: int, case: Case, batch: int, directory: Path) -> StretchResult:
        """Make an image file in `directory` for each of the first `number` samples. Returns when all are on disk."""
        ...


def missing(name: str) -> str | None:
    """Why this machine cannot measure engine `name`; None if it can.

    Raises:
        ValueError: there is no such engine.
    """
    kind = name.partition(":")[0]
    if kind not in ("recipe", "recipe+compile", "recipe+cache-dit", "xfuser", "fluxexp"):
        raise ValueError(
            f"there is no engine {name!r}: use recipe, recipe+compile, recipe+cache-dit, xfuser or fluxexp:PRESET"
        )
    if kind == "recipe+cache-dit" and find_spec("cache_dit") is None:
        return "cache-dit is not installed"
    if kind == "xfuser":
        return "this benchmark has no engine for it" if find_spec("xfuser") else "xfuser is not installed"
    return None


def make_engine(
    name: str, model: BenchmarkModel, is_full_size: bool, device: torch.device, pixels: int, has_second_pass: bool
) -> Engine:
    """Load an engine.

    Args:
        name: a kind of the recipe, or `fluxexp:PRESET[,KEY=VALUE...]` with a preset of `optimization`.
        model: what to load.
        is_full_size: whether to use the full-size model.
        device: device of the recipe.
        pixels: number of pixels of the largest image, for which fluxexp leaves memory free.
        has_second_pass: whether images are made with a negative prompt.
    """
    kind, _, preset = name.partition(":")
    if kind == "fluxexp":
        from imagespeed.framework import Framework

        return Framework(preset or "auto", model, is_full_size, pixels, has_second_pass)
    from imagespeed.recipe import Recipe

    return Recipe(kind, model, is_full_size, device)
