"""A second stream: the bits do not change, and an error ends a capture as it should."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fluxexp.config.model_layouts import FLUX_FILL
from fluxexp.models.flux1.blocks import library_attention
from fluxexp.models.flux1.fused_blocks import FusedAttention, FusedSingleBlock
from fluxexp.models.kernels.cuda_graph import GraphedFunction
from fluxexp.models.kernels.fused_ops import Residual
from fluxexp.models.kernels.merged_projections import merge_projections
from fluxexp.models.kernels.side_stream import SideStream
from fluxexp.models.loading.random_weights import random_pipeline
from tests.models.small_layouts import scaled_down


def test_without_a_gpu_work_runs_in_order() -> None:
    with SideStream(None) as side:
        with side.stream():
            x = torch.ones(2)
        assert x.tolist() == [1, 1]
    with pytest.raises(AssertionError, match="too early"), side.stream():
        pass


@pytest.mark.gpu
def test_a_second_stream_keeps_the_bits_in_repeated_replays() -> None:
    pytest.importorskip("triton")
    transformer: Any = random_pipeline(scaled_down(FLUX_FILL), torch.device("cuda"), torch.bfloat16).transformer
    blocks = list(transformer.single_transformer_blocks) * 4
    for block in transformer.single_transformer_blocks:
        merge_projections(block.attn)
    attention = FusedAttention(library_attention(blocks[0].attn.processor))
    width, dim = blocks[0].attn.to_qkv.in_features, blocks[0].attn.head_dim
    angles = torch.randn(300, dim // 2, device="cuda").repeat_interleave(2, dim=1)
    rope, mod = (angles.cos(), angles.sin()), torch.randn(1, 3 * width, device="cuda", dtype=torch.bfloat16)

    def through(side: SideStream) -> Any:
        fused = [FusedSingleBlock(block, attention, side) for block in blocks]

        def run(tokens: torch.Tensor) -> torch.Tensor:
            stream = Residual(tokens)
            for block in fused:
                stream = block(stream, mod, rope)
            return stream.materialize()

        return GraphedFunction(run)

    one_stream, two_streams = through(SideStream(None)), through(SideStream(torch.device("cuda")))
    with torch.inference_mode():
        for _ in range(5):
            tokens = torch.randn(1, 300, width, device="cuda", dtype=torch.bfloat16)
            assert torch.equal(two_streams(tokens), one_stream(tokens))


@pytest.mark.gpu
def test_an_error_during_a_capture_of_both_streams_is_raised_unchanged() -> None:
    side, fails = SideStream(torch.device("cuda")), False

    def work(x: torch.Tensor) -> torch.Tensor:
        with side:
            with side.stream():
                y = x + 1
                if fails:
                    raise torch.OutOfMemoryError("none left")
            z = x + 2
        return y + z

    graphed, x = GraphedFunction(work), torch.zeros(4, device="cuda")
    graphed(x)
    fails = True
    with pytest.raises(torch.OutOfMemoryError, match="none left"):
        graphed(x)
    fails = False
    assert [graphed(x).tolist() for _ in range(3)] == [[3.0] * 4] * 3
