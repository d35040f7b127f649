"""Checks that the optimizations that others need are not turned off. Never imports torch."""

from __future__ import annotations

from collections.abc import Iterator

from fluxexp.config.optimization_catalog import OPTIMIZATIONS
from fluxexp.config.schema import OptimizationConfig
from fluxexp.errors import Problem


def unmet_needs(optimization: OptimizationConfig) -> Iterator[Problem]:
    """Find optimizations that are turned off although one that cannot be skipped needs them.

    An approximate optimization cannot be skipped, because it changes pixels. A value that a `Need` names cannot be
    skipped either.
    """
    for name, declared in OPTIMIZATIONS.items():
        value = getattr(optimization, name)
        if not value:
            continue
        for need in declared.needs:
            cannot_skip = need.values or declared.kind_of(value) == "approximate"
            if cannot_skip and need.applies_to(value) and getattr(optimization, need.name) is False:
                what = f"must be on for {declared.words(value)}, which {need.because}"
                is_exact = OPTIMIZATIONS[need.name].kind == "exact"
                hint = f"use optimization.{need.name}=true" + (": it is exact" if is_exact else "")
                yield Problem(f"optimization.{need.name}", what, False, hint)
