"""Ulysses' exchanges without a library: kernels write to the other GPUs' memory, and meet by counters there.

A step of FLUX has 114 exchanges of some MiB: what a collective needs to begin is more than what it needs to carry them.
Here the kernel that norms queries and keys writes them where they are attended to, and another hands the outcome back.
Imported on machines with a GPU only.

Where there is other work meanwhile, the GPU's copy engine carries a single image's heads instead, which takes no
multiprocessor's time.

Memory is written to by others only after its owner has met them behind its last use: there is one meeting behind each
exchange, and the two exchanges of a layer go to regions of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from fluxexp.parallel.collectives import Collectives
from fluxexp.parallel.peer_memory import shared

_SIGNALS = 256
"""Bytes for counters, one a rank."""


@triton.jit
def _meet(counters_ptr, offsets_ptr, own_ptr, broken_ptr, rank, SIZE: tl.constexpr):  # fmt: skip
    """Tell all ranks, wait for all; what was written before is seen by them afterwards. Ends early when links break."""
    turn = tl.atomic_add(own_ptr, 1, sem="relaxed") + 1
    for peer in tl.static_range(SIZE):
        there = counters_ptr + tl.load(offsets_ptr + peer) + rank
        tl.atomic_xchg(there, turn, sem="release", scope="sys")
    for peer in tl.static_range(SIZE):
        seen = tl.atomic_add(counters_ptr + peer, 0, sem="acquire", scope="sys")
        while seen < turn:
            seen = tl.atomic_add(counters_ptr + peer, 0, sem="acquire", scope="sys")
            if tl.load(broken_ptr, volatile=True) != 0:
                seen = turn


@triton.jit
def _hand_back(
    from_ptr, back_ptr, offsets_ptr, starts_ptr, tokens, rank,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # One token's heads to the rank that holds it, among those of the others.
    row = tl.program_id(0).to(tl.int64)
    image, token = row // tokens, row % tokens
    holder = 0
    for peer in tl.static_range(1, SIZE):
        holder += (token >= tl.load(starts_ptr + peer)).to(tl.int32)
    start, end = tl.load(starts_ptr + holder), tl.load(starts_ptr + holder + 1)
    place = image * (end - start) + token - start
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    values = tl.load(from_ptr + row * WIDTH + columns, mask=inside)
    there = back_ptr + tl.load(offsets_ptr + holder) + place * (SIZE * WIDTH) + rank * WIDTH
    tl.store(there + columns, values, mask=inside)


class Exchange:
    """The memory of one arrangement of tokens, on all ranks. All of them make it, in step.

    Args:
        batch: images at the most.
        sizes: tokens that each rank holds.
        heads: of all ranks, a multiple of their number.
        copies: the stream for the copy engine.
    """

    def __init__(
        self,
        collectives: Collectives,
        batch: int,
        sizes: Sequence[int],
        heads: int,
        dim: int,
        dtype: torch.dtype,
        copies: torch.cuda.Stream,
    ) -> None:
        size, device = collectives.size, collectives.device
        self._size, self._rank = size, collectives.rank
        self._sizes, self._dim, self._own = tuple(sizes), dim, heads // size
        self._tokens = sum(sizes)
        starts = [sum(sizes[:rank]) for rank in range(size + 1)]
        self._start = starts[collectives.rank]
        self._row = 3 * self._own * dim
        region = batch * self._tokens * self._row * dtype.itemsize
        back = batch * max(sizes) * heads * dim * dtype.itemsize
        self._memory = torch.zeros(_SIGNALS + region + back, dtype=torch.uint8, device=device)
        self._counters = self._memory[:_SIGNALS].view(torch.int32)
        self._region = self._memory[_SIGNALS : _SIGNALS + region].view(dtype)
        self._back = self._memory[_SIGNALS + region :].view(dtype)
        self._peers = shared(collectives, self._memory)  # kept, so that they stay mapped
        distances = [peer.data_ptr() - self._memory.data_ptr() for peer in self._peers]
        self.offsets = torch.tensor([distance // dtype.itemsize for distance in distances], device=device)
        """Of the ranks' memory from this one's, in elements: int64 (ranks,)."""
        self._counter_offsets = torch.tensor([distance // 4 for distance in distances], device=device)
        self._starts = torch.tensor(starts, device=device)
        self._turn = torch.zeros(1, dtype=torch.int32, device=device)
        self._broken = collectives.broken
        self._copies = copies
        self._is_sending = False
        self._regions = [peer[_SIGNALS : _SIGNALS + region].view(dtype) for peer in self._peers]
        self.staged_offsets: torch.Tensor | None = None
        """As `offsets`, of memory here whose contents `send` brings there; None for batches: their images lie apart."""
        if batch == 1:
            self._staged = torch.empty(size, sizes[collectives.rank] * self._row, dtype=dtype, device=device)
            own = self._region.data_ptr() + self._start * self._row * dtype.itemsize
            staged = [(part.data_ptr() - own) // dtype.itemsize for part in self._staged]
            staged[collectives.rank] = 0
            self.staged_offsets = torch.tensor(staged, device=device)

    def places(self, batch: int, tokens: int) -> tuple[torch.Tensor, ...]:
        """Where this rank's queries, keys and values go: (B, tokens, ranks, heads of a rank, head dimension), each
        rank's part `offsets` away from what the view says.
        """
        own = self._joint(batch)[:, self._start : self._start + tokens]
        return tuple(own[:, :, number].unsqueeze(2).expand(-1, -1, self._size, -1, -1) for number in range(3))

    def send(self) -> None:
        """Begin to bring what lies staged where it is needed. It stays as it is until it `arrived`."""
        self._copies.wait_stream(torch.cuda.current_stream(self._region.device))
        self._is_sending = True
        own = slice(self._start * self._row, (self._start + self._sizes[self._rank]) * self._row)
        with torch.cuda.stream(self._copies):
            for peer, region in enumerate(self._regions):
                if peer != self._rank:
                    region[own].copy_(self._staged[peer])  # contiguous: a copy of memory, not a kernel

    def settle(self) -> None:
        """Have what the current stream is given next come after what is being sent, if anything is."""
        if self._is_sending:
            self._is_sending = False
            torch.cuda.current_stream(self._region.device).wait_stream(self._copies)

    def arrived(self, batch: int) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values (B, tokens of all ranks, heads of this one, dim), once they are there."""
        self.settle()
        self._meet()
        return self._joint(batch).unbind(2)

    def hand_back(self, attended: torch.Tensor) -> None:
        """Give each rank its tokens' part of (B, tokens, heads of this rank, head dimension)."""
        attended = attended.contiguous()
        batch, width = attended.shape[0], self._own * self._dim
        _hand_back[(batch * self._tokens,)](
            attended, self._back, self.offsets, self._starts, self._tokens, self._rank,
            SIZE=self._size, WIDTH=width, BLOCK=triton.next_power_of_2(width), num_warps=4,
        )  # fmt: skip

    def handed_back(self, batch: int) -> torch.Tensor:
        """This rank's tokens with all heads (B, tokens, heads, head dimension): to be used before the next exchange."""
        self._meet()
        shape = (batch, self._sizes[self._rank], self._size * self._own, self._dim)
        return self._back[: shape[0] * shape[1] * shape[2] * shape[3]].view(shape)

    def _joint(self, batch: int) -> torch.Tensor:
        shape = (batch, self._tokens, 3, self._own, self._dim)
        return self._region[: batch * self._tokens * self._row].view(shape)

    def _meet(self) -> None:
        _meet[(1,)](
            self._counters, self._counter_offsets, self._turn, self._broken, self._rank, SIZE=self._size, num_warps=1
        )
