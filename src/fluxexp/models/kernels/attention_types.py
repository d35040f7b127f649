"""Types that attention kernels, transformer blocks and context parallelism share."""

from __future__ import annotations

from collections.abc import Callable

import torch

Rope = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines, each float32 (text and image tokens, head dimension)."""
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Attention: queries, keys and values, each (B, tokens, heads, head dimension), to a tensor of that shape."""
