"""What is recorded gives the same bits, and what cannot be recorded is called as it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fluxexp.config.optimization_catalog import NONE
from fluxexp.models.kernels.cuda_graph import GraphedFunction
from tests.models.conftest import PROMPTS, Load

pytestmark = pytest.mark.gpu
RECORDED = replace(NONE, hoist_constants=True, cuda_graph=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_text_encoders_are_recorded_when_they_are_first_asked(load: Load, dtype: str) -> None:
    plain, recorded = load("tiny_fill", dtype, device="cuda"), load("tiny_fill", dtype, RECORDED, device="cuda")
    recorded.encode_prompts(["something else"], None)
    assert not recorded.skipped_optimizations
    recorded.pipeline.text_encoder.forward = recorded.pipeline.text_encoder_2.forward = None  # nobody asks them again
    for prompt in PROMPTS:
        (expected,), (found,) = plain.encode_prompts([prompt], None), recorded.encode_prompts([prompt], None)
        assert all(torch.equal(*pair) for pair in zip(expected, found, strict=True))


def test_each_shape_is_recorded_by_itself(load: Load) -> None:
    plain, recorded = load("tiny_fill", device="cuda"), load("tiny_fill", optimization=RECORDED, device="cuda")
    for prompts, length in ((PROMPTS, None), (PROMPTS[:1], 8), (PROMPTS[::-1], None), (PROMPTS[1:2], 8)):
        expected, found = plain.encode_prompts(prompts, length), recorded.encode_prompts(prompts, length)
        for pairs in zip(expected, found, strict=True):
            assert all(torch.equal(*pair) for pair in zip(*pairs, strict=True))


def test_what_asks_the_device_cannot_be_recorded_and_is_called_as_it_is() -> None:
    reasons: list[Exception] = []
    replayed = GraphedFunction(lambda x: x + x.sum().item(), captures_first_call=True, on_failure=reasons.append)
    x = torch.ones(3, device="cuda")
    assert [(n * replayed(n * x)).tolist() for n in (1, 2, 3)] == [[4.0] * 3, [16.0] * 3, [36.0] * 3]
    assert len(reasons) == 1
    assert "captur" in str(reasons[0])
    recorded = GraphedFunction(lambda x: 2 * x)
    assert [recorded(n * x).tolist() for n in (1, 2, 3)] == [[2.0] * 3, [4.0] * 3, [6.0] * 3]


def test_too_little_memory_for_a_recording_is_an_error_only_where_it_must_be() -> None:
    is_full = False

    def work(x: torch.Tensor) -> torch.Tensor:
        if is_full and torch.cuda.is_current_stream_capturing():
            raise torch.OutOfMemoryError("none left")
        return 2 * x

    reasons: list[Exception] = []
    must, may, x = GraphedFunction(work), GraphedFunction(work, on_failure=reasons.append), torch.ones(3, device="cuda")
    assert [replayed(x).tolist() for replayed in (must, may)] == [[2.0] * 3] * 2
    is_full = True
    with pytest.raises(torch.OutOfMemoryError, match="none left"):
        must(x)
    assert [may(n * x).tolist() for n in (1, 2)] == [[2.0] * 3, [4.0] * 3]
    assert len(reasons) == 1
    is_full = False
    assert [must(n * x).tolist() for n in (1, 2)] == [[2.0] * 3, [4.0] * 3]
