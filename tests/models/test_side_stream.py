"""Work on a second stream."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fluxexp.models.flux1.blocks import library_attention
from fluxexp.models.flux1.fused_blocks import FusedAttention, FusedSingleBlock
from fluxexp.models.kernels.cuda_graph import GraphedFunction
from fluxexp.models.kernels.fused_ops import Residual
from fluxexp.models.kernels.merged_projections import merge_projections
from fluxexp.models.kernels.side_stream import SideStream
from fluxexp.models.loading.model_layouts import FLUX_FILL, scaled_down
from fluxexp.models.loading.random_weights import random_pipeline


def test_without_a_gpu_all_goes_in_order() -> None:
    with SideStream(None) as beside:
        with beside.stream():
            x = torch.ones(2)
        assert x.tolist() == [1, 1]
    with pytest.raises(AssertionError, match="too early"), beside.stream():
        pass


@pytest.mark.gpu
def test_a_second_stream_changes_no_bit_however_often_it_is_replayed() -> None:
    pytest.importorskip("triton")
    transformer: Any = random_pipeline(scaled_down(FLUX_FILL), torch.device("cuda"), torch.bfloat16).transformer
    blocks = list(transformer.single_transformer_blocks) * 4
    for block in transformer.single_transformer_blocks:
        merge_projections(block.attn)
    attention = FusedAttention(library_attention(blocks[0].attn.processor))
    width, dim = blocks[0].attn.to_qkv.in_features, blocks[0].attn.head_dim
    angles = torch.randn(300, dim // 2, device="cuda").repeat_interleave(2, dim=1)
    rope, mod = (angles.cos(), angles.sin()), torch.randn(1, 3 * width, device="cuda", dtype=torch.bfloat16)

    def through(beside: SideStream) -> Any:
        fused = [FusedSingleBlock(block, attention, beside) for block in blocks]

        def run(tokens: torch.Tensor) -> torch.Tensor:
            stream = Residual(tokens)
            for block in fused:
                stream = block(stream, mod, rope)
            return stream.settled()

        return GraphedFunction(run)

    alone, both = through(SideStream(None)), through(SideStream(torch.device("cuda")))
    with torch.inference_mode():
        for _ in range(5):
            tokens = torch.randn(1, 300, width, device="cuda", dtype=torch.bfloat16)
            assert torch.equal(both(tokens), alone(tokens))


@pytest.mark.gpu
def test_an_error_while_both_are_recorded_comes_out_as_it_is() -> None:
    beside, fails = SideStream(torch.device("cuda")), False

    def work(x: torch.Tensor) -> torch.Tensor:
        with beside:
            with beside.stream():
                y = x + 1
                if fails:
                    raise torch.OutOfMemoryError("none left")
            z = x + 2
        return y + z

    replayed, x = GraphedFunction(work), torch.zeros(4, device="cuda")
    replayed(x)
    fails = True
    with pytest.raises(torch.OutOfMemoryError, match="none left"):
        replayed(x)
    fails = False
    assert [replayed(x).tolist() for _ in range(3)] == [[3.0] * 4] * 3
