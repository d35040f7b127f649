"""Attention among tokens that several ranks hold, in parts between which there can be other work.

Either each rank takes some of the heads for all tokens (Ulysses, arXiv 2309.14509), by one exchange of queries, keys
and values and one back, or keys and values go round the ranks while each keeps its queries (ring attention, arXiv
2310.01889). The exchanges are PyTorch's functional collectives, which CUDA graphs and compilers take in, or kernels of
our own (`direct.py`).
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
    """Tokens, text and image, that each rank holds."""
    exchange: Exchange | None
    """Kernels that write into the memory of other GPUs; None where ranks exchange heads by a collective."""


Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Queries, keys and values (B, tokens, heads, head dimension)."""

WithLse = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Attention of tensors (B, heads, tokens, head dimension): one like the queries, and the logarithms of the sums of
exponentials, float32 (B, heads, tokens)."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where queries, keys and values are put, as `fused_ops.place_heads` takes it."""

    heads: Heads
    """(B, tokens, heads, head dimension), or (B, tokens, shares, heads of a share, head dimension)."""
    prepared: Any = None
    """What they are in, if they were made by `JointAttention.places`."""
    offsets: torch.Tensor | None = None
    """Of shares that are elsewhere."""
    largest: torch.Tensor | None = None
    """Where the largest magnitude of the values goes, if it is needed."""
    is_staged: bool = False
    """Whether shares lie here until they are sent, and not where they are needed."""


@runtime_checkable
class JointAttention(Protocol):
    """Attention in three calls, so that there can be work between them while tokens are on their way."""

    def places(self, like: torch.Tensor, shape: Sequence[int], *, has_company: bool) -> Places:
        """Where queries, keys and values (B, tokens, heads, head dimension) are best put, in the dtype of `like`.

        Args:
            has_company: whether there is other work between sending and attending.
        """
        ...

    def send(self, places: Places) -> Any:
        """Begin to bring queries, keys and values where they are needed."""
        ...

    def attend(self, sent: Any) -> Any:
        """Attend, and begin to bring the outcome back."""
        ...

    def receive(self, attended: Any) -> torch.Tensor:
        """The outcome, like the queries."""
        ...

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """All of it."""
        ...


class Local:
    """All tokens are here."""

    def __init__(self, attend: Attend) -> None:
        self._attend = attend

    def places(self, like: torch.Tensor, shape: Sequence[int], *, has_company: bool) -> Places:
        """See `JointAttention`."""
        return Places(new_heads(like, shape))

    def send(self, places: Places) -> Heads:
        """See `JointAttention`."""
        return places.heads

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
    """Memory for queries, keys and values."""
    return _three(like.new_empty(shape, dtype=dtype) for _ in range(3))


def _three(tensors: Iterable[torch.Tensor]) -> Heads:
    query, key, value = tensors
    return query, key, value


class Ulysses:
    """Each rank attends with some of the heads to all tokens."""

    def __init__(self, context: TokenArrangement, collectives: Collectives, attend: Attend) -> None:
        self._context = context
        self._collectives = collectives
        self._attend = attend

    def places(self, like: torch.Tensor, shape: Sequence[int], *, has_company: bool) -> Places:
        """See `JointAttention`: on the ranks that attend to them, or as they are sent, where shares are even."""
        batch, tokens, heads, dim = shape
        size, exchange = self._collectives.size, self._context.exchange
        if heads % size:
            return Places(new_heads(like, shape))
        if exchange is not None:
            staged = exchange.staged_offsets if has_company else None
            offsets = exchange.offsets if staged is None else staged
            return Places(_three(exchange.places(batch, tokens)), exchange, offsets, is_staged=staged is not None)
        parts = like.new_empty(size, batch, tokens, 3, heads // size, dim)
        placed = _three(parts[:, :, :, number].permute(1, 2, 0, 3, 4) for number in range(3))
        return Places(placed, parts.view(-1))

    def send(self, places: Places) -> _Sent | Places:
        """See `JointAttention`."""
        if places.offsets is not None:
            if places.is_staged:
                places.prepared.send()
            return places
        heads, prepared = places.heads, places.prepared
        (batch, tokens, *_, dim), num_heads = heads[0].shape, heads[0].shape[2:-1].numel()
        shares = contiguous_shards(num_heads, self._collectives.size)
        own = len(shares[self._collectives.rank])
        outward = [3 * batch * tokens * len(share) * dim for share in shares]
        inward = [3 * batch * size * own * dim for size in self._context.sizes]
        flat = prepared if prepared is not None else _by_heads(heads, shares)
        begun = self._collectives.begin_all_to_all(flat, inward, outward)
        return _Sent(begun, batch, tokens, own, dim, heads[0].dtype, outward, inward)

    def attend(self, sent: _Sent | Places) -> _Sent | Places:
        """See `JointAttention`."""
        if isinstance(sent, Places):
            sent.prepared.hand_back(self._attend(*sent.prepared.arrived(len(sent.heads[0]))))
            return sent
        received = self._collectives.wait(sent.begun)
        joint = self._by_tokens(received, sent.batch, (3, sent.own, sent.dim))
        attended = self._attend(*joint.unbind(2)).to(sent.dtype)
        if sent.batch == 1:  # lies in the order of the ranks
            back = attended.flatten()
        else:
            back = torch.cat([part.flatten() for part in torch.split(attended, list(self._context.sizes), dim=1)])
        outward, inward = ([n // 3 for n in sizes] for sizes in (sent.outward, sent.inward))
        return replace(sent, begun=self._collectives.begin_all_to_all(back, outward, inward))

    def receive(self, attended: _Sent | Places) -> torch.Tensor:
        """See `JointAttention`."""
        if isinstance(attended, Places):
            return attended.prepared.handed_back(len(attended.heads[0]))  # type: ignore[no-any-return]
        received = self._collectives.wait(attended.begun)
        parts = torch.split(received, [n // 3 for n in attended.outward])
        shape = (attended.batch, attended.tokens, -1, attended.dim)
        return torch.cat([part.view(shape) for part in parts], dim=2)

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """See `JointAttention`."""
        return self.receive(self.attend(self.send(Places((query, key, value)))))

    def _by_tokens(self, received: torch.Tensor, batch: int, rest: tuple[int, ...]) -> torch.Tensor:
        """(B, tokens of all ranks, *rest) of what came from each rank, in that order."""
        if batch == 1:
            return received.view(1, -1, *rest)
        sizes = self._context.sizes
        parts = torch.split(received, [received.numel() // sum(sizes) * size for size in sizes])
        return torch.cat([part.view(batch, -1, *rest) for part in parts], dim=1)


@dataclass(frozen=True, slots=True)
class _Sent:
    """What is on its way, and how it is to be seen."""

    begun: torch.Tensor
    batch: int
    tokens: int
    own: int
    dim: int
    dtype: torch.dtype
    outward: Sequence[int]
    inward: Sequence[int]


class Ring:
    """Keys and values go round, queries stay."""

    def __init__(self, context: TokenArrangement, collectives: Collectives) -> None:
        self._context = context
        self._collectives = collectives

    def places(self, like: torch.Tensor, shape: Sequence[int], *, has_company: bool) -> Places:
        """See `JointAttention`: keys and values side by side."""
        passed = like.new_empty(2, *shape)
        return Places((like.new_empty(shape), passed[0], passed[1]), passed)

    def send(self, places: Places) -> _Round:
        """See `JointAttention`."""
        query, key, value = places.heads
        passed = torch.stack((key, value)) if places.prepared is None else places.prepared
        return _Round(query, passed, self._pass_on(passed, 0) if self._collectives.size > 1 else None)

    def attend(self, sent: _Round) -> torch.Tensor:
        """See `JointAttention`."""
        collectives, query, passed, begun = self._collectives, sent.query, sent.passed, sent.begun
        batch, _, heads, dim = query.shape
        with_lse = _with_lse(query.device)
        turned = query.transpose(1, 2)
        out = lse = None
        for step in range(collectives.size):
            if step and step < collectives.size - 1:
                begun = self._pass_on(passed, step)
            keys, values = passed.transpose(2, 3)
            of_part, lse_of_part = with_lse(turned, keys, values)
            if out is None or lse is None:
                out, lse = of_part.float(), lse_of_part
            else:
                out = torch.lerp(out, of_part.float(), torch.sigmoid(lse_of_part - lse).unsqueeze(-1))
                lse = torch.logaddexp(lse, lse_of_part)
            if begun is not None and step < collectives.size - 1:
                passed = collectives.wait(begun).view(2, batch, -1, heads, dim)
        assert out is not None
        return out.to(query.dtype).transpose(1, 2)

    def receive(self, attended: torch.Tensor) -> torch.Tensor:
        """See `JointAttention`."""
        return attended

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """See `JointAttention`."""
        return self.attend(self.send(Places((query, key, value))))

    def _pass_on(self, passed: torch.Tensor, step: int) -> torch.Tensor:
        """Begin to give keys and values to the next rank, and to get those of the one before."""
        rank, size = self._collectives.rank, self._collectives.size
        sent, received = [0] * size, [0] * size
        sent[(rank + 1) % size] = passed.numel()
        per_token = passed.numel() // self._context.sizes[(rank - step) % size]
        received[(rank - 1) % size] = per_token * self._context.sizes[(rank - 1 - step) % size]
        return self._collectives.begin_all_to_all(passed.flatten(), received, sent)


@dataclass(frozen=True, slots=True)
class _Round:
    """Queries, and keys and values (2, B, tokens, heads, head dimension), on their way to the next rank."""

    query: torch.Tensor
    passed: torch.Tensor
    begun: torch.Tensor | None


def _by_heads(tensors: Sequence[torch.Tensor], shares: Sequence[range]) -> torch.Tensor:
    """Flat, for each share of heads one part (B, tokens, tensors, heads of the share, head dimension)."""
    first = tensors[0]
    if len(set(map(len, shares))) > 1:
        stacked = torch.stack(list(tensors), dim=2)
        return torch.cat([stacked[..., share.start : share.stop, :].flatten() for share in shares])
    batch, tokens, _, dim = first.shape
    parts = first.new_empty(len(shares), batch, tokens, len(tensors), len(shares[0]), dim)
    for number, tensor in enumerate(tensors):
        parts[:, :, :, number].copy_(tensor.view(batch, tokens, len(shares), -1, dim).permute(2, 0, 1, 3, 4))
    return parts.flatten()


def _with_lse(device: torch.device) -> WithLse:
    """The kernel of `device` that tells the logarithms, too."""
    aten = torch.ops.aten
    if device.type != "cuda":
        return lambda q, k, v: aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[:2]
    if torch.cuda.get_device_capability(device)[0] < 9:
        return lambda q, k, v: aten._scaled_dot_product_flash_attention(q, k, v)[:2]

    def by_cudnn(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse, *_ = aten._scaled_dot_product_cudnn_attention(query, key, value, None, True)
        return out, lse.view(lse.shape[:3])

    return by_cudnn
