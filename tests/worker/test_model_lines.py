"""Another line of models: its texts have several lengths, and its timestep shift depends on the number of steps."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fluxexp.config import RunConfig
from fluxexp.config.families import FAMILIES, Family
from fluxexp.config.schema import NO_FILES, ContextKind, FluxModelConfig
from fluxexp.errors import ModelError, SampleError
from fluxexp.models.base import (
    ContextParallelModel,
    CutTokens,
    DecodedImages,
    Job,
    ModelInput,
    Prompt,
    clip_text,
    require_inputs,
)
from fluxexp.models.loading import model_loader
from fluxexp.models.loading.model_lines import LINES
from fluxexp.models.schedules import Schedules
from fluxexp.parallel.collectives import Collectives
from fluxexp.records import LoraUse
from tests.worker.test_loop import Rank

Compose = Callable[..., RunConfig]
CPU = torch.device("cpu")
NEXT = Family(name="next", purpose="makes images from long texts", pipeline="NextPipeline", line="next")
PADDING = 4
"""Texts are padded to a multiple of this, and padding is attended: images of other lengths cannot share a batch."""
SCHEDULER = {"num_train_timesteps": 1000, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}


def shift_by_steps(config: Mapping[str, Any], image_tokens: int, steps: int) -> float:
    return float(config["base_shift"] + image_tokens / 4096 + 1 / steps)


@dataclass(frozen=True)
class Conditioned:
    height: int
    width: int
    text: torch.Tensor
    """(text tokens, 1)."""


class NextModel:
    """A model with nothing of FLUX.1: an encoder of words, one block, and latents that are pixels."""

    def __init__(self, device: torch.device) -> None:
        self.family = NEXT
        self.device = device
        self.applied_optimizations: list[str] = []
        self.skipped_optimizations: dict[str, str] = {}
        self.conditionings: OrderedDict[Hashable, Any] = OrderedDict()
        self.compiles_shapes = False
        self.schedules = Schedules(SCHEDULER, device, shift_by_steps)
        self.batches: list[list[int]] = []
        """Of each batch, the text tokens of its images."""
        self.runs = 0

    def text_tokens(self, prompt: Prompt, max_sequence_length: int | None) -> int:
        return PADDING * math.ceil(len(clip_text(prompt).split()) / PADDING)

    def condition(self, inputs: Sequence[ModelInput], max_sequence_length: int | None) -> list[Conditioned]:
        for item in inputs:
            require_inputs(item, self.family)
        return [Conditioned(item.height, item.width, self._encoded(item, max_sequence_length)) for item in inputs]

    def _encoded(self, item: ModelInput, max_sequence_length: int | None) -> torch.Tensor:
        words = [float(len(word)) for word in clip_text(item.prompt).split()]
        missing = self.text_tokens(item.prompt, max_sequence_length) - len(words)
        return torch.tensor(words + [0.0] * missing)[:, None]

    def sample_noise(self, seed: int, height: int, width: int) -> torch.Tensor:
        return torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))

    def denoise(self, jobs: Sequence[Job]) -> torch.Tensor:
        return self.integrate(self.begin(jobs))

    def begin(self, jobs: Sequence[Job]) -> Any:
        if not jobs[0].is_warmup:
            self.batches.append([len(job.conditioning.text) for job in jobs])
        text = torch.stack([job.conditioning.text for job in jobs])  # fails if lengths differ
        own = jobs[0].conditioning
        noise = [self.sample_noise(job.seed, own.height, own.width) for job in jobs]
        return jobs[0].point, torch.stack(noise), text

    def integrate(self, begun: Any) -> torch.Tensor:
        latents: torch.Tensor
        point, latents, text = begun
        schedule = self.schedules.get(point, latents[0, 0].numel() // NEXT.token_side**2)
        latents = latents.clone()
        for sigma, following in zip(schedule.scheduler.sigmas, schedule.scheduler.sigmas[1:], strict=False):
            latents += (following - sigma) * (latents - text.mean(dim=1)[:, :, None, None] / 10)
        return latents

    def decode(self, latents: torch.Tensor) -> DecodedImages:
        pixels = (latents.permute(0, 2, 3, 1).sigmoid() * 255).byte().numpy()
        return DecodedImages([Image.fromarray(each) for each in pixels])

    def computed_steps(self, latents: torch.Tensor) -> list[int]:
        return [1] * len(latents)

    def tokens(self, height: int, width: int, max_sequence_length: int | None) -> int:
        return NEXT.tokens(height * width, max_sequence_length)

    def free_memory(self) -> None:
        self.conditionings.clear()

    @property
    def streaming_bytes(self) -> int:
        return 0

    def streams_text_encoders(self, prompts: Sequence[Prompt], max_sequence_length: int | None) -> bool:
        return False

    def encode_prompts(self, prompts: Sequence[Prompt], max_sequence_length: int | None) -> None: ...

    def changes_text(self, lora: Sequence[LoraUse]) -> bool:
        return False

    def cut_tokens(self, prompts: Sequence[Prompt], max_sequence_length: int | None) -> list[CutTokens | None]:
        return [None] * len(prompts)

    def enable_context_parallel(self, collectives: Collectives, kind: ContextKind) -> str:
        raise ModelError("one rank only")

    def disable_context_parallel(self) -> None: ...

    def drop_collectives(self) -> None: ...


class NextLine:
    """Loads it."""

    def key(self, config: RunConfig, *, takes_loras: bool) -> Hashable:
        return config.model

    def load(self, config: RunConfig, device: torch.device, pixels: int, *, takes_loras: bool) -> ContextParallelModel:
        return NextModel(device)

    def has_room(self, model: NextModel, pixels: int) -> bool:
        return True

    def start_run(self, model: NextModel, config: RunConfig) -> None:
        model.runs += 1


@pytest.fixture
def config(compose: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A run of the new line, with texts of 3 lengths."""
    monkeypatch.setitem(FAMILIES, NEXT.name, NEXT)
    monkeypatch.setitem(LINES, "next", NextLine)
    monkeypatch.setattr(model_loader, "_loaded", {})
    (tmp_path / "prompts.txt").write_text("".join(f"{'word ' * (number % 10 + 1)}{number}\n" for number in range(20)))
    composed = compose(
        *("model=fake", "dataset=prompts", f"dataset.path={tmp_path / 'prompts.txt'}", "output.paste=false"),
        *("sampling.height=32", "sampling.width=32", "sampling.steps=3", "sampling.batch_size=4"),
    )
    model = FluxModelConfig(
        family="next",
        name="next",
        path="",
        base=None,
        files=NO_FILES,
        revision=None,
        variant=None,
        sha256=None,
        weights="random",
        layout="small_dev",
        dtype="float32",
        resolution=32,
    )
    return replace(composed, model=model)


def test_a_batch_has_texts_of_one_length(config: RunConfig, tmp_path: Path) -> None:
    model: Any = model_loader.load_context_parallel_model(config, CPU, rank=0)
    assert isinstance(model, NextModel)
    records = Rank(config, model, tmp_path / "run").work()
    assert [record.status for record in records.values()] == ["ok"] * 20
    assert all(len(set(batch)) == 1 for batch in model.batches)
    assert {length for batch in model.batches for length in batch} == {4, 8, 12}
    assert max(map(len, model.batches)) == 4, "equal lengths share batches"


def test_a_loaded_model_of_any_line_is_used_again(config: RunConfig) -> None:
    first: Any = model_loader.load_context_parallel_model(config, CPU, rank=0)
    again: Any = model_loader.load_context_parallel_model(replace(config, name="other"), CPU, rank=0)
    assert again is first
    assert again.runs == 2
    changed = replace(config, model=replace(config.model, name="another"))
    assert model_loader.load_context_parallel_model(changed, CPU, rank=0) is not first


def test_the_shift_depends_on_the_steps(config: RunConfig, tmp_path: Path) -> None:
    plan = Rank(config, NextModel(CPU), tmp_path / "run").plan
    point = plan.point_of(0)
    for steps in (2, 8):
        prepared = NextModel(CPU).schedules.get(replace(point, steps=steps), 64)
        mu, plain = shift_by_steps(SCHEDULER, 64, steps), torch.linspace(1, 1 / steps, steps)
        shifted = math.exp(mu) / (math.exp(mu) + 1 / plain - 1)
        torch.testing.assert_close(prepared.scheduler.sigmas[:-1], shifted)


def test_inputs_are_checked_by_the_family(config: RunConfig) -> None:
    pictures = (Image.new("RGB", (32, 32)),) * 2
    item = ModelInput(prompt="x", height=32, width=32, references=pictures)
    with pytest.raises(SampleError, match=r"has 2 references, but model\.family=next looks at 1"):
        NextModel(CPU).condition([item], None)
