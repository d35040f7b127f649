"""The exchanges of Ulysses attention without a library: kernels write to the memory of other GPUs and wait at barriers.

A step of FLUX has 114 exchanges of a few MiB. A collective takes longer to start than to carry so little data. Here the
kernel that normalizes and rotates the heads also writes them to the ranks that attend to them, and a second kernel
sends the result back. Only imported on machines with a GPU.

If other work runs at the same time, the copy engine of the GPU sends the heads of a single image instead: it occupies
no multiprocessor.

Each rank allocates one block of memory with these parts, in this order:

- counters: int32, one per rank, in 256 bytes. Each rank writes how many barriers it has reached, in the blocks of all.
- heads: (B, tokens of all ranks, 3, own heads, head dimension), the heads that this rank attends with: queries, keys
  and values of a token side by side. Each rank writes the rows of its tokens.
- result: (B, own tokens, heads, head dimension). Each rank writes the columns of its heads.

All blocks have the same layout, so the address in a peer's block is the address in the own block plus a constant per
rank.

When may a rank write to a peer's memory again? There is one barrier after each of the two exchanges of a layer. A rank
reaches the barrier after the second one only when its attention has read `heads`; its peers pass that barrier before
they write the next layer's heads. Likewise it reaches the next layer's first barrier only when it has read `result`. So
each part is safe while the other is exchanged, and one copy of each part is enough.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from fluxexp.parallel.collectives import Collectives
from fluxexp.parallel.peer_memory import shared

_COUNTER_BYTES = 256
"""Room for 64 ranks. It also keeps the next parts aligned."""


@triton.jit
def _barrier_kernel(counters_ptr, offsets_ptr, own_ptr, broken_ptr, rank, SIZE: tl.constexpr):  # fmt: skip
    """Tell all ranks that this one is here, and wait for all. It ends early if the collectives were aborted.

    All that this rank's stream wrote before the barrier is visible to all ranks after it.
    """
    # The number of this barrier is counted on the device: a CUDA graph replays the kernel with the same arguments. No
    # other program uses this counter, so relaxed order is enough.
    count = tl.atomic_add(own_ptr, 1, sem="relaxed") + 1
    for peer in tl.static_range(SIZE):
        there = counters_ptr + tl.load(offsets_ptr + peer) + rank
        # Release at system scope: another GPU that sees this count also sees all that was written before it.
        tl.atomic_xchg(there, count, sem="release", scope="sys")
    for peer in tl.static_range(SIZE):
        # Adding 0 is an acquire load, which `tl.load` does not offer: later reads cannot run before it.
        seen = tl.atomic_add(counters_ptr + peer, 0, sem="acquire", scope="sys")
        while seen < count:  # not `!=`: a fast peer may have reached the next barrier already
            seen = tl.atomic_add(counters_ptr + peer, 0, sem="acquire", scope="sys")
            # A thread of the host sets `broken` in pinned memory: volatile, so that each iteration reads it.
            if tl.load(broken_ptr, volatile=True) != 0:
                seen = count


@triton.jit
def _send_back_kernel(
    from_ptr, result_ptr, offsets_ptr, starts_ptr, tokens, rank,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # One program sends one token's heads (WIDTH elements) to the rank that holds the token.
    row = tl.program_id(0).to(tl.int64)
    image, token = row // tokens, row % tokens
    holder = 0
    for peer in tl.static_range(1, SIZE):  # ranks hold consecutive tokens: count the ranks that start at or before it
        holder += (token >= tl.load(starts_ptr + peer)).to(tl.int32)
    start, end = tl.load(starts_ptr + holder), tl.load(starts_ptr + holder + 1)
    own_row = image * (end - start) + token - start
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH  # BLOCK is a power of two; the next columns belong to the heads of other ranks
    values = tl.load(from_ptr + row * WIDTH + columns, mask=inside)
    there = result_ptr + tl.load(offsets_ptr + holder) + own_row * (SIZE * WIDTH) + rank * WIDTH
    tl.store(there + columns, values, mask=inside)


class Exchange:
    """The memory for one arrangement of tokens, on all ranks. Constructing it is a collective: all ranks do it.

    Args:
        batch: the largest number of images.
        sizes: number of tokens that each rank holds.
        heads: total number of heads, a multiple of the number of ranks.
        dim: head dimension.
        dtype: of the heads.
        copies: the stream for the copy engine.

    Attributes:
        offsets: int64 (ranks,), on the device: distance from this rank's memory to that of each rank, in elements.
        staged_offsets: like `offsets`, but to staging memory on this GPU, from which `send` copies the heads.
            None for more than one image: the rows of several images are not contiguous at their destination.

    Raises:
        UnreachableError: a rank cannot open the memory of another; raised on all ranks.
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
        self._sizes, self._dim, self._num_own_heads = tuple(sizes), dim, heads // size
        self._tokens = sum(sizes)
        starts = [sum(sizes[:rank]) for rank in range(size + 1)]
        self._start = starts[collectives.rank]
        self._row = 3 * self._num_own_heads * dim
        head_bytes = batch * self._tokens * self._row * dtype.itemsize
        # As for the rank with most tokens, so that all ranks allocate the same number of bytes.
        result_bytes = batch * max(sizes) * heads * dim * dtype.itemsize
        # Zeros, because counters start at 0. `shared` synchronizes the device before it exchanges addresses.
        self._memory = torch.zeros(_COUNTER_BYTES + head_bytes + result_bytes, dtype=torch.uint8, device=device)
        self._counters = self._memory[:_COUNTER_BYTES].view(torch.int32)
        self._heads = self._memory[_COUNTER_BYTES : _COUNTER_BYTES + head_bytes].view(dtype)
        self._result = self._memory[_COUNTER_BYTES + head_bytes :].view(dtype)
        self._peers = shared(collectives, self._memory)  # kept, so that their memory stays mapped
        distances = [peer.data_ptr() - self._memory.data_ptr() for peer in self._peers]
        self.offsets = torch.tensor([distance // dtype.itemsize for distance in distances], device=device)
        self._counter_offsets = torch.tensor([distance // 4 for distance in distances], device=device)
        self._starts = torch.tensor(starts, device=device)
        self._barrier_count = torch.zeros(1, dtype=torch.int32, device=device)
        self._broken = collectives.broken
        self._copies = copies
        self._is_sending = False
        self._peer_heads = [peer[_COUNTER_BYTES : _COUNTER_BYTES + head_bytes].view(dtype) for peer in self._peers]
        self.staged_offsets: torch.Tensor | None = None
        if batch == 1:
            self._staged = torch.empty(size, sizes[collectives.rank] * self._row, dtype=dtype, device=device)
            # `buffer_views` points to this rank's rows of its own heads: offsets count from there.
            own = self._heads.data_ptr() + self._start * self._row * dtype.itemsize
            staged = [(part.data_ptr() - own) // dtype.itemsize for part in self._staged]
            staged[collectives.rank] = 0  # its own group needs no copy: it is written where it is used
            self.staged_offsets = torch.tensor(staged, device=device)

    def buffer_views(self, batch: int, tokens: int) -> tuple[torch.Tensor, ...]:
        """Views to which `qk_norm_rope` writes queries, keys and values of this rank's tokens.

        Each is (B, tokens, ranks, heads of a rank, head dimension). The stride between groups of heads is 0: all have
        their address in this rank's own memory, to which the kernel adds `offsets` or `staged_offsets`, one per group.
        """
        own = self._joint(batch)[:, self._start : self._start + tokens]
        return tuple(own[:, :, number].unsqueeze(2).expand(-1, -1, self._size, -1, -1) for number in range(3))

    def send(self) -> None:
        """Start to copy the staged heads to the other ranks. The staging memory may change after `receive`."""
        # The copies read what the current stream writes. They also come after its last barrier, so that no peer still
        # attends to the heads that they overwrite.
        self._copies.wait_stream(torch.cuda.current_stream(self._heads.device))
        self._is_sending = True
        own = slice(self._start * self._row, (self._start + self._sizes[self._rank]) * self._row)
        with torch.cuda.stream(self._copies):
            for peer, heads in enumerate(self._peer_heads):
                if peer != self._rank:
                    heads[own].copy_(self._staged[peer])  # both are contiguous: the copy engine does it, not a kernel

    def join_copies(self) -> None:
        """Let the current stream wait for the copies of `send`, if there are any."""
        if self._is_sending:
            self._is_sending = False
            torch.cuda.current_stream(self._heads.device).wait_stream(self._copies)

    def receive(self, batch: int) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values (B, tokens of all ranks, heads of this rank, head dimension), after a barrier.

        They stay valid until `receive_back`.
        """
        self.join_copies()  # before the barrier, which tells the other ranks that the copies have arrived
        self._barrier()
        return self._joint(batch).unbind(2)

    def send_back(self, attended: torch.Tensor) -> None:
        """Send the attended tokens (B, tokens of all ranks, heads of this rank, head dimension) to their ranks."""
        attended = attended.contiguous()
        batch, width = attended.shape[0], self._num_own_heads * self._dim
        _send_back_kernel[(batch * self._tokens,)](
            attended, self._result, self.offsets, self._starts, self._tokens, self._rank,
            SIZE=self._size, WIDTH=width, BLOCK=triton.next_power_of_2(width), num_warps=4,
        )  # fmt: skip

    def receive_back(self, batch: int) -> torch.Tensor:
        """This rank's tokens with all heads (B, tokens, heads, head dimension), after a barrier.

        The caller must queue all that reads them before the next `receive`.
        """
        self._barrier()
        shape = (batch, self._sizes[self._rank], self._size * self._num_own_heads, self._dim)
        return self._result[: shape[0] * shape[1] * shape[2] * shape[3]].view(shape)

    def _joint(self, batch: int) -> torch.Tensor:
        shape = (batch, self._tokens, 3, self._num_own_heads, self._dim)
        return self._heads[: batch * self._tokens * self._row].view(shape)

    def _barrier(self) -> None:
        _barrier_kernel[(1,)](
            self._counters, self._counter_offsets, self._barrier_count, self._broken, self._rank, SIZE=self._size,
            num_warps=1,
        )  # fmt: skip
