"""A captured function gives the same bits, and a function that cannot be captured runs without a graph."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fluxexp.config.optimization_catalog import NONE
from fluxexp.models.kernels.cuda_graph import GraphedFunction
from tests.models.conftest import PROMPTS, Load

pytestmark = pytest.mark.gpu
GRAPHED = replace(NONE, hoist_constants=True, cuda_graph=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_text_encoders_are_captured_at_their_first_call(load: Load, dtype: str) -> None:
    plain, graphed = load("tiny_fill", dtype, device="cuda"), load("tiny_fill", dtype, GRAPHED, device="cuda")
    graphed.encode_prompts(["something else"], None)
    assert not graphed.skipped_optimizations
    # From now on only the graphs run.
    graphed.pipeline.text_encoder.forward = graphed.pipeline.text_encoder_2.forward = None
    for prompt in PROMPTS:
        (expected,), (found,) = plain.encode_prompts([prompt], None), graphed.encode_prompts([prompt], None)
        assert all(torch.equal(*pair) for pair in zip(expected, found, strict=True))


def test_each_shape_has_its_own_graph(load: Load) -> None:
    plain, graphed = load("tiny_fill", device="cuda"), load("tiny_fill", optimization=GRAPHED, device="cuda")
    for prompts, length in ((PROMPTS, None), (PROMPTS[:1], 8), (PROMPTS[::-1], None), (PROMPTS[1:2], 8)):
        expected, found = plain.encode_prompts(prompts, length), graphed.encode_prompts(prompts, length)
        for pairs in zip(expected, found, strict=True):
            assert all(torch.equal(*pair) for pair in zip(*pairs, strict=True))


def test_a_function_that_waits_for_the_device_runs_without_a_graph() -> None:
    reasons: list[Exception] = []
    waiting = GraphedFunction(lambda x: x + x.sum().item(), captures_first_call=True, on_failure=reasons.append)
    x = torch.ones(3, device="cuda")
    assert [(n * waiting(n * x)).tolist() for n in (1, 2, 3)] == [[4.0] * 3, [16.0] * 3, [36.0] * 3]
    assert len(reasons) == 1
    assert "captur" in str(reasons[0])
    graphed = GraphedFunction(lambda x: 2 * x)
    assert [graphed(n * x).tolist() for n in (1, 2, 3)] == [[2.0] * 3, [4.0] * 3, [6.0] * 3]


def test_a_capture_that_runs_out_of_memory_is_an_error_unless_on_failure_is_given() -> None:
    is_full = False

    def work(x: torch.Tensor) -> torch.Tensor:
        if is_full and torch.cuda.is_current_stream_capturing():
            raise torch.OutOfMemoryError("none left")
        return 2 * x

    reasons: list[Exception] = []
    required, optional, x = (
        GraphedFunction(work),
        GraphedFunction(work, on_failure=reasons.append),
        torch.ones(3, device="cuda"),
    )
    assert [function(x).tolist() for function in (required, optional)] == [[2.0] * 3] * 2
    is_full = True
    with pytest.raises(torch.OutOfMemoryError, match="none left"):
        required(x)
    assert [optional(n * x).tolist() for n in (1, 2)] == [[2.0] * 3, [4.0] * 3]
    assert len(reasons) == 1
    is_full = False
    assert [required(n * x).tolist() for n in (1, 2)] == [[2.0] * 3, [4.0] * 3]
