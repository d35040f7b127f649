"""Attention among the tokens that several ranks hold, in three calls, so that other work can run between them.

- Ulysses (arXiv 2309.14509): an all-to-all gives each rank some of the heads of all tokens. It attends with them, and a
  second all-to-all returns the result.
- Ring attention (arXiv 2310.01889): each rank keeps its queries; keys and values rotate through
  the ranks.

The exchanges are PyTorch's functional collectives, which CUDA graphs and compilers can capture, or the kernels of
`peer_exchange.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

from fluxexp.models.kernels.attention_types import Attend
from fluxexp.parallel.collectives import Collectives
from fluxexp.parallel.sharding import contiguous_shards

if TYPE_CHECKING:
    from fluxexp.models.context_parallel.peer_exchange import Exchange


class TokenArrangement(Protocol):
    """Which rank holds which tokens of the current batch. `Context` is one."""

    sizes: tuple[int, ...]
    """Number of text and image tokens that each rank holds."""
    exchange: Exchange | None
    """Kernels that write to the memory of other GPUs; None if ranks exchange heads by collectives."""


Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Queries, keys and values (B, tokens, heads, head dimension)."""

WithLse = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Attention of tensors (B, heads, tokens, head dimension). It returns a tensor like the queries, and the log-sum-exp of
the scores of each query (LSE), float32 (B, heads, tokens)."""


@dataclass(frozen=True, slots=True)
class HeadBuffers:
    """Memory for queries, keys and values, as `fused_ops.qk_norm_rope` takes it."""

    heads: Heads
    """(B, tokens, heads, head dimension), or (B, tokens, groups, heads of a group, head dimension). A head group is
    the set of heads that one rank attends with."""
    backing: Any = None
    """The owner of the memory if `JointAttention.buffers` made it: the tensor to send, or the `Exchange`."""
    offsets: torch.Tensor | None = None
    """Distance of each head group from the address in `heads`, if the groups are in other memory; see `Exchange`."""
    amax: torch.Tensor | None = None
    """float32 (B,), for the largest magnitude of each image's values; None if nothing needs it."""
    is_staged: bool = False
    """True: the head groups are in staging memory on this GPU until `send`. False: they are on their ranks already."""


@runtime_checkable
class JointAttention(Protocol):
    """Attention in three calls: `send`, `attend`, `receive`. Other work can run between them while data is sent.

    The results of `send` and `attend` are only for the next call.
    """

    def buffers(self, like: torch.Tensor, shape: Sequence[int], *, overlaps: bool) -> HeadBuffers:
        """The best memory for queries, keys and values (B, tokens, heads, head dimension), in the dtype of `like`.

        Args:
            overlaps: whether other work runs between `send` and `attend`.
        """
        ...

    def send(self, buffers: HeadBuffers) -> Any:
        """Start to send queries, keys and values to the ranks that attend with them."""
        ...

    def attend(self, sent: Any) -> Any:
        """Attend, and start to send the result back."""
        ...

    def receive(self, attended: Any) -> torch.Tensor:
        """The result: a tensor like the queries."""
        ...

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """All three calls, without other work between them."""
        ...


class Local:
    """Attention on one rank, which holds all tokens."""

    def __init__(self, attend: Attend) -> None:
        self._attend = attend

    def buffers(self, like: torch.Tensor, shape: Sequence[int], *, overlaps: bool) -> HeadBuffers:
        """See `JointAttention`."""
        return HeadBuffers(new_heads(like, shape))

    def send(self, buffers: HeadBuffers) -> Heads:
        """See `JointAttention`."""
        return buffers.heads

    def attend(self, sent: Heads) -> torch.Tensor:
        """See `JointAttention`."""
        return self._attend(*sent)

    def receive(self, attended: torch.Tensor) -> torch.Tensor:
        """See `JointAttention`."""
        return attended

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """See `JointAttention`."""
        return self._attend(query, key, value)


def new_heads(like: torch.Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Heads:
    """New memory for queries, keys and values, each of `shape`; `dtype` defaults to that of `like`."""
    return _three(like.new_empty(shape, dtype=dtype) for _ in range(3))


def _three(tensors: Iterable[torch.Tensor]) -> Heads:
    query, key, value = tensors
    return query, key, value


class Ulysses:
    """Each rank attends with some of the heads, among the tokens of all ranks.

    A head group is the set of heads that one rank attends with. If all groups have the same size, the heads are written
    in the order in which they are sent, or directly to the ranks that attend with them. Otherwise they are copied into
    that order.
    """

    def __init__(self, context: TokenArrangement, collectives: Collectives, attend: Attend) -> None:
        self._context = context
        self._collectives = collectives
        self._attend = attend

    def buffers(self, like: torch.Tensor, shape: Sequence[int], *, overlaps: bool) -> HeadBuffers:
        """See `JointAttention`."""
        batch, tokens, heads, dim = shape
        size, exchange = self._collectives.size, self._context.exchange
        if heads % size:  # groups of two sizes have no common shape
            return HeadBuffers(new_heads(like, shape))
        if exchange is not None:
            # If other work runs meanwhile, the copy engine sends the heads, because it uses no multiprocessor. So they
            # are first written to staging memory here. Otherwise the kernel writes them to the other GPUs directly.
            staged = exchange.staged_offsets if overlaps else None
            offsets = exchange.offsets if staged is None else staged
            views = _three(exchange.buffer_views(batch, tokens))
            return HeadBuffers(views, exchange, offsets, is_staged=staged is not None)
        # One contiguous part per rank: an all-to-all sends contiguous parts. Queries, keys and values of a token lie
        # side by side, so that the parts of all ranks, one after another, are (tokens of all ranks, 3, heads, dim).
        parts = like.new_empty(size, batch, tokens, 3, heads // size, dim)
        views = _three(parts[:, :, :, number].permute(1, 2, 0, 3, 4) for number in range(3))
        return HeadBuffers(views, parts.view(-1))

    def send(self, buffers: HeadBuffers) -> _InFlight | HeadBuffers:
        """See `JointAttention`."""
        if buffers.offsets is not None:
            if buffers.is_staged:
                buffers.backing.send()
            return buffers
        heads, backing = buffers.heads, buffers.backing
        (batch, tokens, *_, dim), num_heads = heads[0].shape, heads[0].shape[2:-1].numel()
        groups = contiguous_shards(num_heads, self._collectives.size)
        own = len(groups[self._collectives.rank])
        sent_sizes = [3 * batch * tokens * len(group) * dim for group in groups]
        received_sizes = [3 * batch * size * own * dim for size in self._context.sizes]
        flat = backing if backing is not None else _by_heads(heads, groups)
        pending = self._collectives.begin_all_to_all(flat, received_sizes, sent_sizes)
        return _InFlight(pending, batch, tokens, own, dim, heads[0].dtype, sent_sizes, received_sizes)

    def attend(self, sent: _InFlight | HeadBuffers) -> _InFlight | HeadBuffers:
        """See `JointAttention`."""
        if isinstance(sent, HeadBuffers):
            sent.backing.send_back(self._attend(*sent.backing.receive(len(sent.heads[0]))))
            return sent
        received = self._collectives.wait(sent.pending)
        joint = self._by_tokens(received, sent.batch, (3, sent.own, sent.dim))
        attended = self._attend(*joint.unbind(2)).to(sent.dtype)
        # The all-to-all back needs one contiguous part per rank. The tokens of one image are in the order of the ranks
        # already; of several images, the parts of each rank must be brought together.
        if sent.batch == 1:
            back = attended.flatten()
        else:
            back = torch.cat([part.flatten() for part in torch.split(attended, list(self._context.sizes), dim=1)])
        # On the way back, sent and received sizes are swapped, and there is one tensor instead of three.
        received_sizes, sent_sizes = ([n // 3 for n in sizes] for sizes in (sent.sent_sizes, sent.received_sizes))
        return replace(sent, pending=self._collectives.begin_all_to_all(back, received_sizes, sent_sizes))

    def receive(self, attended: _InFlight | HeadBuffers) -> torch.Tensor:
        """See `JointAttention`."""
        if isinstance(attended, HeadBuffers):
            return attended.backing.receive_back(len(attended.heads[0]))  # type: ignore[no-any-return]
        received = self._collectives.wait(attended.pending)
        parts = torch.split(received, [n // 3 for n in attended.sent_sizes])  # from each rank, its group of heads
        shape = (attended.batch, attended.tokens, -1, attended.dim)
        return torch.cat([part.view(shape) for part in parts], dim=2)

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """See `JointAttention`."""
        return self.receive(self.attend(self.send(HeadBuffers((query, key, value)))))

    def _by_tokens(self, received: torch.Tensor, batch: int, rest: tuple[int, ...]) -> torch.Tensor:
        """(B, tokens of all ranks, *rest), from flat parts (B, tokens of a rank, *rest) in rank order."""
        if batch == 1:
            return received.view(1, -1, *rest)
        sizes = self._context.sizes
        parts = torch.split(received, [received.numel() // sum(sizes) * size for size in sizes])
        return torch.cat([part.view(batch, -1, *rest) for part in parts], dim=1)


@dataclass(frozen=True, slots=True)
class _InFlight:
    """Heads or results in transfer between ranks, and their shape."""

    pending: torch.Tensor
    """The result of an all-to-all that has begun."""
    batch: int
    tokens: int
    """That this rank holds."""
    own: int
    """Heads that this rank attends with."""
    dim: int
    dtype: torch.dtype
    sent_sizes: Sequence[int]
    """Elements of queries, keys and values that each rank gets from this one."""
    received_sizes: Sequence[int]
    """Elements of queries, keys and values that this rank gets from each rank."""


class Ring:
    """Keys and values rotate through the ranks; queries do not move.

    Each rank attends to the keys and values of one rank after another, and combines the results by their log-sum-exp.
    The transfer of the next keys and values runs at the same time.
    """

    def __init__(self, context: TokenArrangement, collectives: Collectives) -> None:
        self._context = context
        self._collectives = collectives

    def buffers(self, like: torch.Tensor, shape: Sequence[int], *, overlaps: bool) -> HeadBuffers:
        """See `JointAttention`. Keys and values are one tensor, which is sent without a copy."""
        passed = like.new_empty(2, *shape)
        return HeadBuffers((like.new_empty(shape), passed[0], passed[1]), passed)

    def send(self, buffers: HeadBuffers) -> _RingState:
        """See `JointAttention`."""
        query, key, value = buffers.heads
        passed = torch.stack((key, value)) if buffers.backing is None else buffers.backing
        return _RingState(query, passed, self._pass_on(passed, 0) if self._collectives.size > 1 else None)

    def attend(self, sent: _RingState) -> torch.Tensor:
        """See `JointAttention`."""
        collectives, query, passed, pending = self._collectives, sent.query, sent.passed, sent.pending
        batch, _, heads, dim = query.shape
        with_lse = _with_lse(query.device)
        by_heads = query.transpose(1, 2)
        out = lse = None
        for step in range(collectives.size):
            # `send` has begun the first transfer. A transfer in the last step would be useless: by then every rank has
            # seen all keys and values.
            if step and step < collectives.size - 1:
                pending = self._pass_on(passed, step)
            keys, values = passed.transpose(2, 3)
            of_part, lse_of_part = with_lse(by_heads, keys, values)
            if out is None or lse is None:
                out, lse = of_part.float(), lse_of_part
            else:
                # A part has the weight exp(lse) in the whole softmax. So the new part counts for
                # exp(b) / (exp(a) + exp(b)) = sigmoid(b - a). In float32, because each step rounds the sum again.
                out = torch.lerp(out, of_part.float(), torch.sigmoid(lse_of_part - lse).unsqueeze(-1))
                lse = torch.logaddexp(lse, lse_of_part)
            if pending is not None and step < collectives.size - 1:
                passed = collectives.wait(pending).view(2, batch, -1, heads, dim)
        assert out is not None
        return out.to(query.dtype).transpose(1, 2)

    def receive(self, attended: torch.Tensor) -> torch.Tensor:
        """See `JointAttention`."""
        return attended

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """See `JointAttention`."""
        return self.attend(self.send(HeadBuffers((query, key, value))))

    def _pass_on(self, passed: torch.Tensor, step: int) -> torch.Tensor:
        """Start to send keys and values to the next rank, and to receive those of the previous one.

        After `step` steps this rank holds those of rank - step.
        """
        rank, size = self._collectives.rank, self._collectives.size
        # An all-to-all in which each rank only sends to the next one. Ranks may hold different numbers of tokens.
        sent, received = [0] * size, [0] * size
        sent[(rank + 1) % size] = passed.numel()
        per_token = passed.numel() // self._context.sizes[(rank - step) % size]
        received[(rank - 1) % size] = per_token * self._context.sizes[(rank - 1 - step) % size]
        return self._collectives.begin_all_to_all(passed.flatten(), received, sent)


@dataclass(frozen=True, slots=True)
class _RingState:
    """The state at the start of a rotation through the ring."""

    query: torch.Tensor
    passed: torch.Tensor
    """Own keys and values (2, B, tokens, heads, head dimension)."""
    pending: torch.Tensor | None
    """Those of the previous rank, in transfer; None on one rank."""


def _by_heads(tensors: Sequence[torch.Tensor], groups: Sequence[range]) -> torch.Tensor:
    """One flat tensor with a part (B, tokens, tensors, heads of the group, head dimension) for each group of heads."""
    first = tensors[0]
    if len(set(map(len, groups))) > 1:
        stacked = torch.stack(list(tensors), dim=2)
        return torch.cat([stacked[..., group.start : group.stop, :].flatten() for group in groups])
    batch, tokens, _, dim = first.shape
    parts = first.new_empty(len(groups), batch, tokens, len(tensors), len(groups[0]), dim)
    for number, tensor in enumerate(tensors):
        parts[:, :, :, number].copy_(tensor.view(batch, tokens, len(groups), -1, dim).permute(2, 0, 1, 3, 4))
    return parts.flatten()


def _with_lse(device: torch.device) -> WithLse:
    """The attention kernel of `device` that also returns the log-sum-exp."""
    aten = torch.ops.aten
    if device.type != "cuda":
        return lambda q, k, v: aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[:2]
    if torch.cuda.get_device_capability(device)[0] < 9:
        return lambda q, k, v: aten._scaled_dot_product_flash_attention(q, k, v)[:2]

    def by_cudnn(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse, *_ = aten._scaled_dot_product_cudnn_attention(query, key, value, None, True)
        return out, lse.view(lse.shape[:3])

    return by_cudnn
