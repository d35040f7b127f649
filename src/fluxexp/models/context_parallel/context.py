"""Context parallelism: each of several ranks holds a part of an image's tokens, and they meet in attention alone.

Everything else in a FLUX block is done token by token; how they meet says `joint_attention.py`. Shares differ by one
token or head at the most.
"""

from __future__ import annotations

from collections.abc import Hashable
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

_EXCHANGES = 16
"""As many arrangements as steps are recorded for (`cuda_graph.py`)."""


class Context:
    """One rank's part of images that several make together.

    Attributes:
        sizes: text and image tokens that each rank holds.
    """

    def __init__(self, collectives: Collectives, kind: ContextKind) -> None:
        self._collectives = collectives
        self._kind = kind
        self.sizes: tuple[int, ...] = ()
        self._text = self._image = range(0)
        self._image_sizes: tuple[int, ...] = ()
        self.exchange: Exchange | None = None
        """Memory that ranks write to directly, where there is any for what was arranged last."""
        self._exchanges: dict[Hashable, Exchange] = {}
        self._is_direct: bool | None = None
        self._copies: torch.cuda.Stream | None = None

    @property
    def arrangement(self) -> Hashable:
        """What recorded steps depend on besides their tensors: the tokens of each rank, and the memory they meet in."""
        return self.sizes, id(self.exchange)

    @property
    def words(self) -> str:
        """What is done, for `applied_optimizations`."""
        return f"context={self._kind} on {self._collectives.size} ranks"

    def check(self, heads: int) -> None:
        """Whether a model with that many attention heads can be shared out.

        Raises:
            ModelError: it cannot.
        """
        if self._kind == "ulysses" and heads < self._collectives.size:
            raise ModelError(
                f"parallelism.context_kind=ulysses shares out {heads} attention heads, fewer than "
                f"{self._collectives.size} ranks: use a smaller parallelism.context_size, or "
                "parallelism.context_kind=ring"
            )

    def arrange(self, text_tokens: int, image_tokens: int) -> None:
        """Share the tokens of one batch's images out.

        Raises:
            ModelError: there are fewer than ranks.
        """
        size, rank = self._collectives.size, self._collectives.rank
        if min(text_tokens, image_tokens) < size:
            raise ModelError(
                f"{text_tokens} text and {image_tokens} image tokens cannot be shared out to {size} ranks: "
                "use a smaller parallelism.context_size"
            )
        texts, images = contiguous_shards(text_tokens, size), contiguous_shards(image_tokens, size)
        self._text, self._image = texts[rank], images[rank]
        self._image_sizes = tuple(map(len, images))
        self.sizes = tuple(len(text) + len(image) for text, image in zip(texts, images, strict=True))

    def connect(self, batch: int, heads: int, dim: int, dtype: torch.dtype) -> None:
        """Get ready to exchange heads of a batch that was arranged. All ranks do so, in step."""
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
            except UnreachableError:  # on all ranks
                self._is_direct = False
                return
        self.exchange = self._exchanges[key]

    def _copy_stream(self) -> torch.cuda.Stream:
        if self._copies is None:
            self._copies = torch.cuda.Stream(self._collectives.device)  # type: ignore[no-untyped-call]
        return self._copies

    def join_streams(self) -> None:
        """After an error in the midst of a step: leave no stream at work beside the current one."""
        if self.exchange is not None:
            self.exchange.join_copies()

    def disconnect(self) -> None:
        """Give up what was made with the links, on all ranks. Nobody's kernels are at work in it any more."""
        if self._exchanges:
            torch.cuda.synchronize(
                self._collectives.device
            )  # kernels that wait go on as the links are broken, or all came
        self.exchange = None
        self._exchanges.clear()

    @property
    def is_full(self) -> bool:
        """Whether memory is kept for many arrangements: time to `disconnect`."""
        return len(self._exchanges) >= _EXCHANGES

    def own_text(self, text: torch.Tensor) -> torch.Tensor:
        """This rank's part of (B, text tokens, ...)."""
        return text[:, self._text.start : self._text.stop].contiguous()

    def own_image(self, tokens: torch.Tensor) -> torch.Tensor:
        """This rank's part of (B, image tokens, ...)."""
        return tokens[:, self._image.start : self._image.stop].contiguous()

    def own_rope(self, rope: Rope, text_tokens: int) -> Rope:
        """RoPE of this rank's text and image tokens."""
        text, image = self._text, self._image
        rows = slice(text.start, text.stop), slice(text_tokens + image.start, text_tokens + image.stop)
        cosines, sines = (torch.cat([table[part] for part in rows]) for table in rope)
        return cosines, sines

    def gathered(self, own: torch.Tensor) -> torch.Tensor:
        """All image tokens (B, image tokens, ...) of what each rank has of them."""
        largest = max(self._image_sizes)
        padded = F.pad(own, (0, 0, 0, largest - own.shape[1]))
        parts = self._collectives.all_gather(padded)
        return torch.cat([part[:, :length] for part, length in zip(parts, self._image_sizes, strict=True)], dim=1)

    def mean(self, of_tokens: torch.Tensor) -> torch.Tensor:
        """Means over all image tokens, the same bits on every rank, of means over this rank's."""
        weights = [length / sum(self._image_sizes) for length in self._image_sizes]
        parts = self._collectives.all_gather(of_tokens)
        return torch.stack([part * weight for part, weight in zip(parts, weights, strict=True)]).sum(dim=0)

    def attention(self, attend: Attend) -> JointAttention:
        """Attention among the tokens of all ranks; `attend` is used on each where whole heads meet there."""
        return Ring(self, self._collectives) if self._kind == "ring" else Ulysses(self, self._collectives, attend)
