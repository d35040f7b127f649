"""Types of single values that several groups of the schema use."""

from __future__ import annotations

from typing import Annotated

from fluxexp.config.rules import Matches, MultipleOf, Range

SIZE_MULTIPLE = 16
"""FLUX packs 2 x 2 latents into a token, and a latent stands for 8 x 8 pixels. So sizes are multiples of 16 pixels."""

PixelCount = Annotated[int, Range(16, 8192), MultipleOf(SIZE_MULTIPLE)]
"""Length of a side in pixels."""
Seed = Annotated[int, Range(0, 2**63 - 1)]
Count = Annotated[int, Range(1)]
Name = Annotated[str, Matches(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "1 to 64 letters, digits, '.', '_' or '-'")]
