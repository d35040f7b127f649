"""Context parallelism: each of several ranks holds a part of an image's tokens. They exchange data only in attention.

All other work in a FLUX block is done token by token. `joint_attention.py` has the exchanges. The parts of two ranks
differ by at most one text token, one image token and one head. The blocks compute no padding.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812

from fluxexp.config.schema import ContextKind
from fluxexp.errors import ModelError
from fluxexp.models.context_parallel.joint_attention import JointAttention, Ring, Ulysses
from fluxexp.models.kernels.attention_types import Attend, Rope
from fluxexp.parallel.collectives import Collectives
from fluxexp.parallel.peer_memory import UnreachableError, reach_each_other
from fluxexp.parallel.sharding import contiguous_shards

if TYPE_CHECKING:
    from fluxexp.models.context_parallel.peer_exchange import Exchange

_MAX_EXCHANGES = 16
"""Number of arrangements with memory of their own: as many as a function has CUDA graphs (`cuda_graph.py`)."""


class Context:
    """One rank's part of the images that several ranks make together.

    Per batch, call `arrange`, then `connect`.

    Args:
        collectives: of the replica.
        kind: how heads are exchanged.

    Attributes:
        sizes: number of text and image tokens that each rank holds.
        exchange: memory of all ranks for the current batch, to which their kernels write directly; None if heads are
            exchanged by collectives.
    """

    def __init__(self, collectives: Collectives, kind: ContextKind) -> None:
        self._collectives = collectives
        self._kind = kind
        self.sizes: tuple[int, ...] = ()
        self._text = self._image = range(0)
        self._image_sizes: tuple[int, ...] = ()
        self.exchange: Exchange | None = None
        self._exchanges: dict[Hashable, Exchange] = {}
        self._is_direct: bool | None = None
        self._copies: torch.cuda.Stream | None = None

    @property
    def arrangement(self) -> Hashable:
        """What CUDA graphs depend on besides their inputs: the tokens of each rank, and the memory of the exchange."""
        return self.sizes, id(self.exchange)

    @property
    def words(self) -> str:
        """A description for `applied_optimizations`."""
        return f"context={self._kind} on {self._collectives.size} ranks"

    def check(self, heads: int) -> None:
        """Check that each rank gets one of the `heads` attention heads, if they are split.

        Raises:
            ModelError: there are more ranks than heads.
        """
        if self._kind == "ulysses" and heads < self._collectives.size:
            raise ModelError(
                f"parallelism.context_kind=ulysses splits {heads} attention heads, which is fewer than the "
                f"{self._collectives.size} ranks of a replica: use a smaller parallelism.context_size, or "
                "parallelism.context_kind=ring"
            )

    def arrange(self, text_tokens: int, image_tokens: int) -> None:
        """Split the tokens of a batch's images over the ranks.

        Args:
            text_tokens: per image.
            image_tokens: per image.

        Raises:
            ModelError: a rank would get no text token or no image token.
        """
        size, rank = self._collectives.size, self._collectives.rank
        if min(text_tokens, image_tokens) < size:
            raise ModelError(
                f"{text_tokens} text and {image_tokens} image tokens cannot be split over {size} ranks, because each "
                "rank needs at least one of both kinds: use a smaller parallelism.context_size, or larger images"
            )
        texts, images = contiguous_shards(text_tokens, size), contiguous_shards(image_tokens, size)
        self._text, self._image = texts[rank], images[rank]
        self._image_sizes = tuple(map(len, images))
        self.sizes = tuple(len(text) + len(image) for text, image in zip(texts, images, strict=True))

    def connect(self, batch: int, heads: int, dim: int, dtype: torch.dtype) -> None:
        """Prepare to exchange the heads of the arranged batch. A collective: all ranks call it.

        `exchange` stays None for ring attention, on CPUs, if heads do not divide evenly, and if GPUs cannot open each
        other's memory.

        Args:
            batch: number of images.
            heads: total number of heads.
            dim: head dimension.
            dtype: of the heads.
        """
        self.exchange = None
        if self._kind != "ulysses" or heads % self._collectives.size or self._collectives.device.type != "cuda":
            return
        if self._is_direct is None:
            self._is_direct = reach_each_other(self._collectives)
        if not self._is_direct:
            return
        key = batch, self.sizes, heads, dim, dtype
        if key not in self._exchanges:
            from fluxexp.models.context_parallel.peer_exchange import Exchange

            try:
                self._exchanges[key] = Exchange(self._collectives, *key, self._copy_stream())
            except UnreachableError:  # raised on all ranks, so that all use collectives from now on
                self._is_direct = False
                return
        self.exchange = self._exchanges[key]

    def _copy_stream(self) -> torch.cuda.Stream:
        if self._copies is None:
            self._copies = torch.cuda.Stream(self._collectives.device)  # type: ignore[no-untyped-call]
        return self._copies

    def join_streams(self) -> None:
        """After an error within a step: let the current stream wait for copies that have not ended."""
        if self.exchange is not None:
            self.exchange.join_copies()

    def disconnect(self) -> None:
        """Free the memory of all exchanges. All ranks call it, after they have queued their last work with it."""
        if self._exchanges:
            # No kernel may write to freed memory. Those that wait at a barrier end: all ranks have reached it, or the
            # collectives were aborted, which sets `broken`.
            torch.cuda.synchronize(self._collectives.device)
        self.exchange = None
        self._exchanges.clear()

    @property
    def is_full(self) -> bool:
        """Whether the maximum number of arrangements has memory, so that the caller must `disconnect`."""
        return len(self._exchanges) >= _MAX_EXCHANGES

    def own_text(self, text: torch.Tensor) -> torch.Tensor:
        """This rank's part of (B, text tokens, ...)."""
        return text[:, self._text.start : self._text.stop].contiguous()

    def own_image(self, tokens: torch.Tensor) -> torch.Tensor:
        """This rank's part of (B, image tokens, ...)."""
        return tokens[:, self._image.start : self._image.stop].contiguous()

    def own_rope(self, rope: Rope, text_tokens: int) -> Rope:
        """RoPE tables of this rank's text tokens, then of its image tokens."""
        text, image = self._text, self._image
        rows = slice(text.start, text.stop), slice(text_tokens + image.start, text_tokens + image.stop)
        cosines, sines = (torch.cat([table[part] for part in rows]) for table in rope)
        return cosines, sines

    def own_inputs(
        self,
        text: torch.Tensor,
        rope: Rope,
        image_tokens: int,
        heads: tuple[int, int] | None,
        free_memory: Callable[[], None],
    ) -> tuple[torch.Tensor, Rope]:
        """This rank's part of text and RoPE of a batch. Arranges the tokens, and connects the ranks.

        Args:
            text: of all ranks (B, text tokens, width).
            rope: of all text and image tokens.
            image_tokens: per image.
            heads: number and dimension of the heads that are exchanged directly; None: by collectives.
            free_memory: frees the CUDA graphs that refer to the memory of exchanges.
        """
        text_tokens = text.shape[1]
        self.arrange(text_tokens, image_tokens)
        if self.is_full:  # true on all ranks at once, as they saw the same batches
            free_memory()  # first: the graphs refer to the exchange memory
            self.disconnect()
        if heads is not None:
            self.connect(len(text), *heads, text.dtype)
        return self.own_text(text), self.own_rope(rope, text_tokens)

    def gathered(self, own: torch.Tensor) -> torch.Tensor:
        """All image tokens (B, image tokens, channels), from this rank's part. A collective: all ranks call it."""
        longest = max(self._image_sizes)
        padded = F.pad(own, (0, 0, 0, longest - own.shape[1]))  # an all-gather needs parts of equal shape
        parts = self._collectives.all_gather(padded)
        return torch.cat([part[:, :length] for part, length in zip(parts, self._image_sizes, strict=True)], dim=1)

    def mean(self, of_tokens: torch.Tensor) -> torch.Tensor:
        """Means over all image tokens, from the means over this rank's. A collective: all ranks call it.

        All ranks get the same bits, because all add the same numbers in rank order. So they take the same decisions.
        """
        weights = [length / sum(self._image_sizes) for length in self._image_sizes]
        parts = self._collectives.all_gather(of_tokens)
        return torch.stack([part * weight for part, weight in zip(parts, weights, strict=True)]).sum(dim=0)

    def attention(self, attend: Attend) -> JointAttention:
        """Attention among the tokens of all ranks. Ulysses calls `attend` on each rank, for its heads."""
        return Ring(self, self._collectives) if self._kind == "ring" else Ulysses(self, self._collectives, attend)
