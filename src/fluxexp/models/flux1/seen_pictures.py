"""The references that a model sees: as tokens of the prompt (Redux), or with an IP-Adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fluxexp.models.base import ModelInput
from fluxexp.models.flux1.ip_adapter import IpAdapter
from fluxexp.models.flux1.picture_prompts import PicturePrompts


@dataclass(frozen=True, slots=True)
class SeenPictures:
    """What the encoders make of the references of one sample. None: the model has no such encoder."""

    prompt_tokens: torch.Tensor | None
    """(references, picture tokens, joint_attention_dim)."""
    embed: torch.Tensor | None
    """(projection dimension,)."""


@dataclass(frozen=True, slots=True)
class PictureEncoders:
    """The encoders of a model, in the two steps of conditioning: the host's work, and that of the device."""

    redux: PicturePrompts | None = None
    ip_adapter: IpAdapter | None = None

    @property
    def modules(self) -> list[torch.nn.Module]:
        """The modules with weights. They are used with the text encoders."""
        of_redux = [] if self.redux is None else self.redux.modules
        return of_redux if self.ip_adapter is None else [*of_redux, self.ip_adapter.image_encoder]

    def read(self, inputs: Sequence[ModelInput]) -> tuple[Any, Any]:
        """References at the sizes that the encoders see, on the device."""
        return (
            None if self.redux is None else self.redux.read(inputs),
            None if self.ip_adapter is None else self.ip_adapter.read(inputs),
        )

    def encode(self, read: tuple[Any, Any], number: int, *, makes_second_pass: bool) -> list[SeenPictures]:
        """Encode the result of `read` for each of `number` inputs.

        Args:
            read: see there.
            number: of inputs.
            makes_second_pass: whether there will be a pass with negative prompts, which needs a black picture.
        """
        none: list[None] = [None] * number
        tokens = none if self.redux is None else self.redux.encode(read[0])
        embeds = none if self.ip_adapter is None else self.ip_adapter.encode(read[1])
        if self.ip_adapter is not None and makes_second_pass:
            self.ip_adapter.black()  # now, because the image encoder is loaded
        return [SeenPictures(own, embed) for own, embed in zip(tokens, embeds, strict=True)]
