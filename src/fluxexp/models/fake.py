"""A model without a network: it draws gradients at a set speed, for dry runs, tests and load-balance studies."""

from __future__ import annotations

import random
import time
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from fluxexp.config.families import FAMILIES
from fluxexp.config.schema import ContextKind, FakeModelConfig
from fluxexp.models.base import CutTokens, DecodedImages, Job, ModelInput, Prompt
from fluxexp.parallel.collectives import Collectives
from fluxexp.records import LoraUse


@dataclass(frozen=True, slots=True)
class _Picture:
    size: tuple[int, int]
    seed: int
    finite: bool
    steps: int


class FakeModel:
    """Draws each image with colors from its task's seed. It sleeps for every image, step and token."""

    def __init__(self, config: FakeModelConfig, device: torch.device, rank: int) -> None:
        self.device = device
        self.applied_optimizations: list[str] = []
        self.skipped_optimizations: dict[str, str] = {}
        self.conditionings: OrderedDict[Hashable, Any] = OrderedDict()
        self.compiles_shapes = False
        self._family = FAMILIES[config.family]
        usual = self.tokens(config.resolution, config.resolution, None)
        self._seconds_per_token = config.seconds_per_step[rank % len(config.seconds_per_step)] / usual
        self._fail_every = config.fail_every
        self._num_ranks = 1

    def condition(self, inputs: Sequence[ModelInput], max_sequence_length: int | None) -> list[ModelInput]:
        """The inputs themselves."""
        return list(inputs)

    def sample_noise(self, seed: int, height: int, width: int) -> Any:
        """No noise is needed."""
        return None

    def denoise(self, jobs: Sequence[Job]) -> list[_Picture]:
        """Sleep as long as a network would compute."""
        return self.integrate(self.begin(jobs))

    def begin(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs themselves, without their pictures."""
        return [replace(job, conditioning=replace(job.conditioning, image=None, mask=None)) for job in jobs]

    def integrate(self, begun: Sequence[Job]) -> list[_Picture]:
        """See `denoise`. With other ranks, the time is divided by their number."""
        jobs, seen = begun, begun[0].conditioning
        tokens = self.tokens(seen.height, seen.width, None)
        passes = sum(self._family.passes(job.point.true_cfg_scale) for job in jobs)
        time.sleep(self._seconds_per_token * tokens * jobs[0].point.steps * passes / self._num_ranks)
        return [
            _Picture(
                (job.conditioning.width, job.conditioning.height),
                job.seed,
                not (self._fail_every and job.seed % self._fail_every == 0),
                job.point.steps * self._family.passes(job.point.true_cfg_scale),
            )
            for job in jobs
        ]

    def decode(self, latents: Sequence[_Picture]) -> DecodedImages:
        """A gradient between two colors of the seed; None for a task that is set to fail."""
        return DecodedImages([_paint(picture) if picture.finite else None for picture in latents])

    def enable_context_parallel(self, collectives: Collectives, kind: ContextKind) -> str:
        """See `ContextParallelModel`."""
        self._num_ranks = collectives.size
        return f"context={kind} on {collectives.size} ranks"

    def disable_context_parallel(self) -> None:
        """See `ContextParallelModel`."""
        self._num_ranks = 1

    def drop_collectives(self) -> None:
        """Nothing was made with them."""

    def free_memory(self) -> None:
        """Drop conditionings."""
        self.conditionings.clear()

    @property
    def streaming_bytes(self) -> int:
        """No weights are streamed."""
        return 0

    def streams_text_encoders(self, prompts: Sequence[Prompt], max_sequence_length: int | None) -> bool:
        """There are no encoders."""
        return False

    def encode_prompts(self, prompts: Sequence[Prompt], max_sequence_length: int | None) -> None:
        """Nothing to do."""

    def changes_text(self, lora: Sequence[LoraUse]) -> bool:
        """See `Model`."""
        return False

    def cut_tokens(self, prompts: Sequence[Prompt], max_sequence_length: int | None) -> list[CutTokens | None]:
        """There are no encoders."""
        return [None] * len(prompts)

    def text_tokens(self, prompt: Prompt, max_sequence_length: int | None) -> int:
        """One number for all prompts, as FLUX.1 has it."""
        return self._family.max_text_tokens if max_sequence_length is None else max_sequence_length

    def computed_steps(self, latents: Sequence[_Picture]) -> list[int]:
        """All steps."""
        return [picture.steps for picture in latents]

    def tokens(self, height: int, width: int, max_sequence_length: int | None) -> int:
        """As many as FLUX.1 has."""
        return self._family.tokens(height * width, max_sequence_length)


def _paint(picture: _Picture) -> Image.Image:
    colors = random.Random(picture.seed)
    first, second = (tuple(colors.randrange(256) for _ in range(3)) for _ in range(2))
    gradient = Image.linear_gradient("L").resize(picture.size)
    return Image.composite(Image.new("RGB", picture.size, first), Image.new("RGB", picture.size, second), gradient)
