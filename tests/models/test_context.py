"""Images made by several ranks together: the latents of one rank, up to rounding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fluxexp.config.optimization_catalog import NONE
from fluxexp.config.schema import ContextKind, FirstBlockCacheConfig, OptimizationConfig, TaylorSeerCacheConfig
from fluxexp.errors import ModelError
from fluxexp.models.base import Job, ModelInput
from fluxexp.models.context_parallel.context import Context
from fluxexp.models.flux1.denoiser import HoistedDenoiser
from fluxexp.models.flux1.flux1_model import Flux1Model
from fluxexp.models.optimizations import change_step_cache
from fluxexp.parallel.collectives import Collectives
from fluxexp.parallel.tensor_broadcast import packed, send, unpacked
from fluxexp.records import LoraUse, Point
from tests import lora_files
from tests.models.conftest import SEEDS, Load, fill_inputs, load_tiny, point, run
from tests.ranks import CPU, linked

HOISTED = replace(NONE, hoist_constants=True)
FUSED = replace(HOISTED, attention_backend="fastest", modulation_table=True, fused_kernels=True)
TAYLORSEER = TaylorSeerCacheConfig(name="taylorseer", interval=2, order=1, warmup_steps=1, last_steps=1)
FIRST_BLOCK = FirstBlockCacheConfig(
    name="first_block", threshold=0.3, warmup_steps=1, last_steps=1, max_consecutive_skips=1
)
ODD = (48, 80)
"""15 image tokens, which neither 2 nor 4 divides. The model has 5 attention heads, so they are never even either."""


def together(
    size: int, kind: ContextKind, optimization: OptimizationConfig, inputs: list[ModelInput], points: list[Point]
) -> list[torch.Tensor]:
    """The latents of each rank."""
    models = [model_of(optimization) for _ in range(size)]  # the library cannot load models in several threads

    def one(collectives: Collectives) -> torch.Tensor:
        model = models[collectives.rank]
        model.enable_context_parallel(collectives, kind)
        return run(model, inputs, points)

    return linked(size, one)


def model_of(optimization: OptimizationConfig) -> Flux1Model:
    model = load_tiny("tiny_fill", optimization=replace(optimization, step_cache=None))
    change_step_cache(model, optimization)
    return model


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("kind", ["ulysses", "ring"])
@pytest.mark.parametrize(("size", "number", "side"), [(2, 1, (64, 96)), (2, 3, ODD), (4, 1, ODD), (3, 2, (64, 64))])
def test_ranks_give_the_latents_of_one(kind: ContextKind, size: int, number: int, side: tuple[int, int]) -> None:
    inputs, points = fill_inputs(*side, number=number), [point(steps=2, guidance=3.0 + n) for n in range(number)]
    alone = run(load_tiny("tiny_fill", optimization=HOISTED), inputs, points)
    first, *others = together(size, kind, HOISTED, inputs, points)
    assert difference(first, alone) < 1e-5
    assert all(torch.equal(first, other) for other in others), "a difference between ranks would grow with each step"


@pytest.mark.parametrize(
    ("optimization", "scheduler", "tolerance"),
    [
        (FUSED, "flow_match_euler", 1e-5),
        # A difference in the last bit may round to another FP8 value: another batch size has as much effect (0.04).
        (replace(FUSED, fp8_linears=True), "flow_match_euler", 0.06),
        (HOISTED, "flow_match_lcm", 1e-4),
        (HOISTED, "unipc", 1e-4),
        (replace(HOISTED, step_cache=TAYLORSEER), "flow_match_euler", 1e-4),
        (replace(HOISTED, step_cache=FIRST_BLOCK), "flow_match_euler", 1e-4),
    ],
    ids=["fused", "fp8", "noise at each step", "multistep", "planned cache", "cache by content"],
)
def test_other_optimizations_work_with_it(optimization: OptimizationConfig, scheduler: str, tolerance: float) -> None:
    inputs, points = fill_inputs(*ODD, number=2), [point(steps=4, scheduler=scheduler)] * 2
    latents = run(model_of(optimization), inputs, points)
    assert all(difference(ours, latents) < tolerance for ours in together(2, "ulysses", optimization, inputs, points))


@pytest.mark.parametrize("kind", ["ulysses", "ring"])
def test_the_compiler_traces_the_collectives(kind: ContextKind) -> None:
    """In one graph, without a break. Only traced, because compiling would take minutes."""

    def one(collectives: Collectives) -> list[torch.Tensor]:
        context = Context(collectives, kind)
        context.arrange(4, 6)
        attend = context.attention(
            lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
            ).transpose(1, 2)
        )
        query, key, value = torch.randn(3, 1, 10, 4, 8, generator=torch.Generator().manual_seed(collectives.rank))
        with torch.inference_mode():
            return [attend(query, key, value), compiled(attend)(query, key, value)]

    def compiled(attend: Any) -> Any:
        return torch.compile(attend, fullgraph=True, backend="aot_eager")

    for plain, traced in linked(1, one):
        torch.testing.assert_close(plain, traced)


def test_context_parallelism_can_be_disabled(load: Load) -> None:
    inputs, points = fill_inputs(number=1), [point(steps=1)]
    model = load("tiny_fill", optimization=HOISTED)
    before = run(model, inputs, points)

    def one(collectives: Collectives) -> None:
        assert model.enable_context_parallel(collectives, "ring") == "context=ring on 1 ranks"
        run(model, inputs, points)
        model.disable_context_parallel()

    linked(1, one)
    assert torch.equal(run(model, inputs, points), before)


def test_a_model_that_cannot_be_split_is_an_error(load: Load) -> None:
    collectives = Collectives(None, 0, 6, CPU)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"needs optimization\.hoist_constants=true"):
        load("tiny_fill").enable_context_parallel(collectives, "ulysses")
    model = load("tiny_fill", optimization=HOISTED)
    with pytest.raises(ModelError, match=r"splits 5 attention heads, which is fewer than the 6 ranks"):
        model.enable_context_parallel(collectives, "ulysses")
    model.enable_context_parallel(collectives, "ring")
    denoiser = model.denoiser
    assert isinstance(denoiser, HoistedDenoiser)
    with pytest.raises(ModelError, match=r"32 text and 4 image tokens cannot be split over 6 ranks"):
        run(model, fill_inputs(32, 32, number=1), [point()])
    model.disable_context_parallel()
    model.denoiser = HoistedDenoiser(model.transformer, replace(denoiser.options, has_fp8_attention=True))
    with pytest.raises(ModelError, match="fp8_attention"):
        model.enable_context_parallel(collectives, "ring")


def test_a_value_is_sent_with_its_tensors() -> None:
    value: dict[str, Any] = {
        "tensors": [torch.arange(5, dtype=torch.bfloat16), torch.randn(2, 3).T, torch.zeros(0), torch.tensor(True)],
        "generator": torch.Generator().manual_seed(3),
        "words": ("x", None),
    }
    text, tensors = packed(value, CPU)
    assert len(text) < 20_000, "it has no tensors except the state of the generator"

    def one(collectives: Collectives) -> Any:
        if collectives.rank:
            return unpacked(text, collectives)
        send(tensors, collectives)
        return value

    _, arrived = linked(2, one)
    assert arrived["words"] == value["words"]
    for ours, theirs in zip(arrived["tensors"], value["tensors"], strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    assert torch.equal(torch.rand(3, generator=arrived["generator"]), torch.rand(3, generator=value["generator"]))


def test_all_ranks_change_to_the_lora_of_a_batch(tmp_path: Path) -> None:
    """The batch that the leader sends names it, so that every rank has the same weights."""
    uses = (LoraUse(lora_files.kohya(tmp_path / "a.safetensors"), 1.0),)
    models = [model_of(FUSED) for _ in range(3)]
    expected = [run(models[2], fill_inputs(), [replace(point(2), lora=lora)] * 3) for lora in ((), uses, ())]

    def one(collectives: Collectives) -> list[torch.Tensor]:
        model = models[collectives.rank]
        model.enable_context_parallel(collectives, "ulysses")
        begun = [model.begin(_jobs(model, lora)) for lora in ((), uses, ())]
        return [model.integrate(each).packed for each in begun]

    for latents in linked(2, one):
        assert all(difference(ours, theirs) < 1e-3 for ours, theirs in zip(latents, expected, strict=True))
        assert difference(latents[1], expected[0]) > 1e-2


def _jobs(model: Flux1Model, lora: tuple[LoraUse, ...]) -> list[Job]:
    conditionings = model.condition(fill_inputs(), None)
    wanted = replace(point(2), lora=lora)
    return [Job(conditioning, wanted, seed) for conditioning, seed in zip(conditionings, SEEDS, strict=True)]
