"""Layouts of models that are small enough for a CPU."""

from __future__ import annotations

from fluxexp.config.model_layouts import scaled_down

__all__ = ["scaled_down"]
