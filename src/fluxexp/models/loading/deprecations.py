"""Hides warnings of diffusers about diffusers' own code, which a user of fluxexp can do nothing about."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def own_deprecations_hidden() -> Generator[None]:
    """Hide the warning that FluxControlNetModel uses a deprecated class of diffusers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*`FluxPosEmbed`", category=FutureWarning)
        yield
