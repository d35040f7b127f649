"""Layouts and pipelines of models that are small enough for a CPU."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch

from fluxexp.config.families import FAMILIES
from fluxexp.config.model_layouts import LAYOUTS, scaled_down
from fluxexp.models.loading.random_weights import random_pipeline

__all__ = ["scaled_down", "small_pipeline"]


def small_pipeline(family: str, device: str = "cpu", dtype: str = "float32") -> Any:
    """The family's pipeline of diffusers, with random weights: a new copy, which the caller may change.

    To build one takes six times as long as to copy it.
    """
    return copy.deepcopy(_built(family, device, dtype))


@cache
def _built(family: str, device: str, dtype: str) -> Any:
    declared = FAMILIES[family]
    layout = scaled_down(LAYOUTS[declared.layouts[0]])
    pipeline: Any = random_pipeline(layout, torch.device(device), getattr(torch, dtype), family=declared)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
