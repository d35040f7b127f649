"""Schema of the config group lora."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fluxexp.config.rules import Range
from fluxexp.records import LoraUse

Scale = Annotated[float, Range(-100, 100)]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """LoRAs: files with small changes of a model's weights, which are added to the weights before an image is made."""

    path: str | list[str] | None
    """A .safetensors file, or `embedded:NAME` for a LoRA that comes with fluxexp; or a list of them. null: none."""
    scale: Scale | list[Scale]
    """Factor of what a LoRA adds to the weights; with several files a list with a factor for each, or one for all."""

    mixing: bool
    """Whether the images of a batch may have different LoRAs. Then LoRAs are computed beside the weights, which
    excludes fused kernels, CUDA graphs, compilation and step caches. false: they are merged into the weights."""

    @property
    def paths(self) -> list[str]:
        """The files, as they are written in the config."""
        if self.path is None:
            return []
        return [self.path] if isinstance(self.path, str) else self.path

    @property
    def scales(self) -> list[float]:
        """The factor of each file."""
        return self.scale if isinstance(self.scale, list) else [self.scale] * len(self.paths)

    @property
    def uses(self) -> tuple[LoraUse, ...]:
        """The LoRAs in order. Both lists must have the same length (`lora_checks.py`)."""
        return tuple(LoraUse(path, scale) for path, scale in zip(self.paths, self.scales, strict=True))
