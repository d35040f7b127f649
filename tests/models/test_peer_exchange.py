"""The exchange kernels, which write to the memory of other ranks. Here all ranks are on one GPU and run one by one."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from fluxexp.models.context_parallel.context import Context
from fluxexp.models.kernels import fused_ops
from fluxexp.models.kernels.cuda_graph import GraphedFunction
from fluxexp.parallel.collectives import Collectives
from fluxexp.parallel.peer_memory import reach_each_other

HEADS, DIM = 6, 32


def ranks_on_one_gpu(monkeypatch: pytest.MonkeyPatch, size: int, batch: int, sizes: Sequence[int]) -> list[Any]:
    """One exchange per rank. Their offsets to each other's memory are set once all exist."""
    from fluxexp.models.context_parallel import peer_exchange

    copies = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def made(rank: int) -> Any:
        broken = torch.zeros(1, dtype=torch.int32).pin_memory()
        collectives: Any = SimpleNamespace(size=size, rank=rank, device=torch.device("cuda"), broken=broken)
        return peer_exchange.Exchange(collectives, batch, sizes, HEADS, DIM, torch.float32, copies)

    monkeypatch.setattr(peer_exchange, "shared", lambda _, own: [own] * size)
    exchanges = [made(rank) for rank in range(size)]
    addresses = [exchange._memory.data_ptr() for exchange in exchanges]
    for exchange, own in zip(exchanges, addresses, strict=True):
        distances = [(address - own) // 4 for address in addresses]
        exchange.offsets = exchange._counter_offsets = torch.tensor(distances, device="cuda")
        exchange._peer_heads = [other._heads for other in exchanges]
    return exchanges


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("sizes", "batch", "is_staged"),
    [([5, 4], 1, False), ([3, 3], 2, False), ([3, 2, 4], 2, False), ([5, 4], 1, True), ([3, 2, 4], 1, True)],
)
def test_heads_reach_the_rank_that_attends_and_results_return(
    monkeypatch: pytest.MonkeyPatch, sizes: list[int], batch: int, is_staged: bool
) -> None:
    pytest.importorskip("triton")
    size, total = len(sizes), sum(sizes)
    exchanges = ranks_on_one_gpu(monkeypatch, size, batch, sizes)
    torch.manual_seed(0)
    projected = [torch.randn(batch, total, HEADS * DIM, device="cuda") for _ in range(3)]
    weights = (torch.rand(DIM, device="cuda"), torch.rand(DIM, device="cuda"))
    angles = torch.randn(total, DIM // 2, device="cuda").repeat_interleave(2, dim=1)
    expected = tuple(torch.empty(batch, total, HEADS, DIM, device="cuda") for _ in range(3))
    query, key, value = projected
    fused_ops.qk_norm_rope((query, key, value), weights, (angles.cos(), angles.sin()), expected, 0, 1e-6)  # type: ignore[arg-type]
    starts = [sum(sizes[:rank]) for rank in range(size + 1)]
    for rank, exchange in enumerate(exchanges):
        own = slice(starts[rank], starts[rank + 1])
        rope = angles[own].cos().contiguous(), angles[own].sin().contiguous()
        assert (exchange.staged_offsets is None) == (batch > 1)
        offsets = exchange.staged_offsets if is_staged else exchange.offsets
        buffers = exchange.buffer_views(batch, sizes[rank])
        for part in (
            slice(0, 1),
            slice(1, sizes[rank]),
        ):  # the two parts are written by two calls, as text and image are
            query, key, value = (x[:, own][:, part].contiguous() for x in projected)
            fused_ops.qk_norm_rope((query, key, value), weights, rope, buffers, part.start, 1e-6, offsets=offsets)
        if is_staged:
            exchange.send()
    for exchange in exchanges:
        exchange.join_copies()  # instead of a barrier
    outcomes = []
    for rank, exchange in enumerate(exchanges):
        monkeypatch.setattr(exchange, "_barrier", lambda: None)
        joint = exchange.receive(batch)
        heads = slice(rank * HEADS // size, (rank + 1) * HEADS // size)
        for found, whole in zip(joint, expected, strict=True):
            torch.testing.assert_close(found, whole[:, :, heads])
        outcomes.append(F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in joint)).transpose(1, 2))
    for exchange, outcome in zip(exchanges, outcomes, strict=True):
        exchange.send_back(outcome)
    whole = torch.cat(outcomes, dim=2)
    for rank, exchange in enumerate(exchanges):
        torch.testing.assert_close(exchange.receive_back(batch), whole[:, starts[rank] : starts[rank + 1]])


@pytest.mark.gpu
def test_the_barrier_waits_for_all_ranks_and_ends_if_the_links_break(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    first, second = ranks_on_one_gpu(monkeypatch, 2, 1, [3, 3])
    for exchange in (first, second):  # the first call loads the kernel, which waits for running kernels
        exchange._broken.fill_(1)
        exchange._barrier()
        torch.cuda.synchronize()
        exchange._broken.zero_()
    streams = [torch.cuda.Stream() for _ in range(2)]  # type: ignore[no-untyped-call]
    for _ in range(3):
        for exchange, stream in zip((first, second), streams, strict=True):
            with torch.cuda.stream(stream):
                exchange._barrier()
    torch.cuda.synchronize()
    assert first._counters[:2].tolist() == [4, 4]
    with torch.cuda.stream(streams[0]):
        first._barrier()
        passed = torch.cuda.Event()  # type: ignore[no-untyped-call]
        passed.record(streams[0])
    is_past = passed.query()  # type: ignore[no-untyped-call]
    assert not is_past, "it waits for the second rank"
    first._broken.fill_(1)
    passed.synchronize()


@pytest.mark.gpu
def test_an_error_while_copies_are_captured_is_raised_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    first, _ = ranks_on_one_gpu(monkeypatch, 2, 1, [3, 3])
    fails = False

    def sends(x: torch.Tensor) -> torch.Tensor:
        first.send()
        try:
            if fails:
                raise torch.OutOfMemoryError("none left")
            return x + 1
        finally:
            first.join_copies()

    graphed, x = GraphedFunction(sends), torch.zeros(4, device="cuda")
    graphed(x)
    fails = True
    with pytest.raises(torch.OutOfMemoryError, match="none left"):
        graphed(x)
    fails = False
    assert [graphed(x).tolist() for _ in range(3)] == [[1.0] * 4] * 3


def test_cpus_use_collectives() -> None:
    collectives = Collectives(None, 0, 2, torch.device("cpu"))  # type: ignore[arg-type]
    assert not reach_each_other(collectives)
    context = Context(collectives, "ulysses")
    context.arrange(8, 8)
    context.connect(1, 6, 32, torch.float32)
    assert context.exchange is None
