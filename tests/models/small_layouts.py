"""Layouts and pipelines of models that are small enough for a CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch

from fluxexp.config.families import FAMILIES
from fluxexp.config.model_layouts import LAYOUTS, scaled_down
from fluxexp.models.loading.random_weights import random_pipeline

__all__ = ["copied", "scaled_down", "small_pipeline"]

Arguments = ParamSpec("Arguments")
Made = TypeVar("Made")


def copied(build: Callable[Arguments, Made]) -> Callable[Arguments, Made]:
    """`build`, called once for each set of hashable arguments: each result is a new copy, which the caller may change.

    To build a small pipeline takes six times as long as to copy it.
    """
    built = cache(build)

    @wraps(build)
    def copy_of(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Made:
        return copy.deepcopy(built(*args, **kwargs))  # type: ignore[arg-type]  # the caller's are hashable

    return copy_of


@copied
def small_pipeline(family: str, device: str = "cpu", dtype: str = "float32") -> Any:
    """The family's pipeline of diffusers, with random weights: a new copy, which the caller may change."""
    declared = FAMILIES[family]
    layout = scaled_down(LAYOUTS[declared.layouts[0]])
    pipeline: Any = random_pipeline(layout, torch.device(device), getattr(torch, dtype), family=declared)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
