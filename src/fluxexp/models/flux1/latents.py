"""Noise samples, packed latents, and copies between host and device. Knows no pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL.Image import Image, fromarray


class ImageTransfer:
    """A copy to the host that may still run: pixels (B, H, W, 3) in uint8, and which images are finite (B,)."""

    def __init__(self, pixels: torch.Tensor, finite: torch.Tensor) -> None:
        self._pixels, self._finite = (_to_host(tensor) for tensor in (pixels, finite))
        self._arrived: torch.cuda.Event | None = None
        if pixels.is_cuda:
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(pixels.device))

    def images(self) -> list[Image | None]:
        """See `Decoded`."""
        if self._arrived is not None:
            self._arrived.synchronize()
        arrays = self._pixels.numpy()
        return [fromarray(array) if ok else None for array, ok in zip(arrays, self._finite.tolist(), strict=True)]


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor to the host. The copy is complete once the device has reached it in its stream."""
    if not tensor.is_cuda:
        return tensor.contiguous()
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a CPU tensor to `device` without waiting. Only a copy from pinned memory can overlap other work."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def noise_generator(seed: int) -> torch.Generator:
    """Return a CPU generator (MT19937) whose state depends on all bits of `seed`, in [0, 2**63).

    `manual_seed` only uses the lower 32 bits, so two tasks of a large run could get the same noise. A seed below 2**32
    gives the state of `manual_seed`. For a larger one, NumPy's `SeedSequence` fills the 624 words of the state.

    Raises:
        RuntimeError: this version of torch lays out the state differently.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    if seed < 1 << 32:
        return generator
    state = generator.get_state()
    # The layout is that of torch's CPUGeneratorImplStateLegacy: 24 bytes, then 624 words of 32 bits in 8 bytes each.
    words = state[24 : 24 + 624 * 8].view(torch.int64)
    if words[0].item() != seed & 0xFFFFFFFF:
        raise RuntimeError(f"torch {torch.__version__} lays out the state of its CPU generator in an unknown way")
    drawn = np.random.SeedSequence(seed).generate_state(624, np.uint32)
    words.copy_(torch.from_numpy(drawn.astype(np.int64)))
    generator.set_state(state)
    return generator


@dataclass(frozen=True, slots=True)
class NoiseSample:
    """Random tensors of one image, drawn on the CPU like diffusers' `randn_tensor` draws them."""

    generator: torch.Generator
    """Its state after these tensors. Schedulers that draw noise continue from it."""
    noises: tuple[torch.Tensor, ...]
    """In order, each (latent channels, H / scale, W / scale)."""

    @classmethod
    def of(cls, seed: int, shape: Sequence[int], dtype: torch.dtype, count: int) -> NoiseSample:
        """Draw `count` tensors of `shape` from a new generator with `seed`."""
        generator = noise_generator(seed)
        return cls(generator, tuple(torch.randn(*shape, generator=generator, dtype=dtype) for _ in range(count)))


@dataclass(frozen=True, slots=True)
class BatchNoise:
    """The noise samples of a batch, by name. A tensor is copied to the device when it is asked for."""

    samples: Sequence[NoiseSample]
    order: Sequence[str]
    """Names of their tensors, in the order in which they were drawn."""
    device: torch.device

    def __call__(self, name: str) -> torch.Tensor:
        """(B, latent channels, H / scale, W / scale)."""
        number = self.order.index(name)
        return to_device(torch.stack([sample.noises[number] for sample in self.samples]), self.device)


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Make one token of 2 x 2 neighbors: (B, C, H, W) to (B, H/2 * W/2, 4 C)."""
    batch, channels, height, width = latents.shape
    tiles = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return tiles.reshape(batch, (height // 2) * (width // 2), channels * 4)


def unpack(packed: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Inverse of `pack`, for latents of `height` x `width`."""
    batch, _, channels = packed.shape
    tiles = packed.view(batch, height // 2, width // 2, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return tiles.reshape(batch, channels // 4, height, width)


def position_ids(rows: int, columns: int) -> torch.Tensor:
    """Positions of image tokens for RoPE, float32 of shape (rows * columns, 3): (0, row, column)."""
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] = torch.arange(rows)[:, None]
    ids[..., 2] = torch.arange(columns)[None, :]
    return ids.reshape(rows * columns, 3)
