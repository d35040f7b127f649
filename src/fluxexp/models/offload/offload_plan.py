"""How much of a model stays on a GPU: chosen from bytes alone, the policy that costs least time of those that fit.

| policy | what is on the GPU |
| --- | --- |
| resident | everything, always |
| text_encoders | transformer and VAE; the text encoders come to encode prompts |
| group | VAE, and of the transformer what fits; other blocks, and the text encoder's, come one by one, each in time |
| model | text encoders or transformer, whichever is needed |
| sequential | the VAE; blocks come one by one, and none while another is at work |

What the work itself takes is estimated (`work_of`), and a reserve is kept for kernels, graphs and gaps between blocks
of memory. Knows neither torch nor what a model does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fluxexp.errors import ModelError

Policy = Literal["resident", "text_encoders", "group", "model", "sequential"]
POLICIES: Sequence[Policy] = ("resident", "text_encoders", "group", "model", "sequential")
"""From quick to slow: with blocks that come, the others stay where their recorded steps know them to be."""

GIB = 1 << 30
_RESERVE = 3 * GIB // 4
_RESERVED_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class WeightSizes:
    """Bytes of a model's weights."""

    text: int
    """The text encoders' but for their blocks."""
    text_blocks: Sequence[int]
    transformer: int
    """The transformer's but for its blocks and modulations."""
    blocks: Sequence[int]
    """Each block's but for the layers that make its modulations: they are used once a batch, not once a step."""
    modulations: Sequence[int]
    vae: int

    @property
    def whole_text(self) -> int:
        """All of the text encoders'."""
        return self.text + sum(self.text_blocks)

    @property
    def whole_transformer(self) -> int:
        """All of the transformer's."""
        return self.transformer + sum(self.blocks) + sum(self.modulations)

    @property
    def all(self) -> int:
        """Everything."""
        return self.whole_text + self.whole_transformer + self.vae

    @property
    def slot(self) -> int:
        """The largest of what comes one after another."""
        return max((*self.text_blocks, *self.blocks, *self.modulations), default=0)


@dataclass(frozen=True, slots=True)
class WorkingMemory:
    """Bytes that an image takes besides weights while it is made."""

    encode: int
    """Its prompt's and its picture's encoding."""
    denoise: int
    decode: int

    def holds(self, other: WorkingMemory) -> bool:
        """Whether what has room for this has room for the other."""
        return self.encode >= other.encode and self.denoise >= other.denoise and self.decode >= other.decode

    @property
    def most(self) -> int:
        """In any of them."""
        return max(self.encode, self.denoise, self.decode)


def working_memory(
    pixels: int, tokens: int, width: int, channels: int, item_bytes: int, modulation_bytes: int = 0
) -> WorkingMemory:
    """What an image takes, estimated by its largest tensors.

    Denoising: some sixteen tensors of the width of the transformer are alive in a block (stream, norm, queries, keys,
    values and what attention gives, and four to eight widths of the MLP). The VAE: four tensors with the channels of
    its second finest level at the picture's size, twice as many bytes as its encoder takes.

    Args:
        pixels: that the VAE has in hand at a time.
        tokens: text and image.
        width: of the transformer.
        channels: of the VAE's second finest level.
        modulation_bytes: of the table of modulations.
    """
    decode = 4 * pixels * channels * item_bytes
    return WorkingMemory(encode=decode // 2, denoise=16 * tokens * width * item_bytes + modulation_bytes, decode=decode)


@dataclass(frozen=True, slots=True)
class OffloadPlan:
    """Where weights are."""

    policy: Policy
    needed_bytes: int
    """At the most at any time, the reserve included."""
    staying: tuple[int, int] = (0, 0)
    """Of the transformer's blocks and of its modulations, how many stay where others come."""
    of: tuple[int, int] = (0, 0)
    """How many there are."""
    num_slots: int = 0
    """Blocks' worth of memory that those take turns in."""
    vae_alone: bool = False
    """Whether the VAE has no room beside the transformer."""
    work: WorkingMemory = WorkingMemory(0, 0, 0)
    """What room was left for."""

    @property
    def moves_transformer(self) -> bool:
        """Whether the weights of the transformer's blocks are not always at one place."""
        return self.policy == "model" or self.staying[0] < self.of[0]

    def lies_as(self, other: OffloadPlan) -> bool:
        """Whether all weights are at the same places."""
        return replace(self, needed_bytes=0, work=other.work) == replace(other, needed_bytes=0)

    @property
    def words(self) -> str:
        """In the summary."""
        (blocks, modulations), (all_blocks, all_modulations) = self.staying, self.of
        shares = f"{blocks} of {all_blocks} blocks and {modulations} of {all_modulations} modulations stay"
        return (
            f"{self.policy}{f', {shares}' if self.policy == 'group' else ''}, at most {self.needed_bytes / GIB:.1f} GiB"
        )


def offload_plans(parts: WeightSizes, work: WorkingMemory) -> Iterator[OffloadPlan]:
    """All that can be done, from quick to slow; `group` with nothing that stays."""
    yield OffloadPlan("resident", _with_reserve(parts.all + work.most))
    text, transformer = parts.whole_text + work.encode, parts.whole_transformer
    others = max(work.denoise, work.decode)
    yield OffloadPlan("text_encoders", _with_reserve(parts.vae + transformer + max(text, others)))
    streamed = parts.vae + parts.transformer + max(parts.text + work.encode, others)
    of = (len(parts.blocks), len(parts.modulations))
    yield OffloadPlan("group", _with_reserve(streamed + 2 * parts.slot), num_slots=2, of=of)
    yield OffloadPlan("model", _with_reserve(parts.vae + max(text, transformer + others)))
    yield OffloadPlan(
        "model", _with_reserve(parts.vae + max(text, transformer + work.denoise, work.decode)), vae_alone=True
    )
    yield OffloadPlan("sequential", _with_reserve(streamed + parts.slot), num_slots=1, of=of)


def choose(
    asked: str, free_bytes: int, parts: WeightSizes, work: WorkingMemory, *, can_stream: bool = True
) -> OffloadPlan:
    """The quickest placement that fits into `free_bytes`; of one policy, where it is not `auto` that is asked for.

    Args:
        can_stream: whether blocks can come one after another.

    Raises:
        ModelError: none fits.
    """
    able = [place for place in offload_plans(parts, work) if asked in ("auto", place.policy)]
    if not can_stream:
        able = [place for place in able if not place.num_slots]
        if not able:
            raise ModelError(f"optimization.offload={asked} needs optimization.hoist_constants=true: it is exact")
    for place in able:
        if place.needed_bytes <= free_bytes:
            chosen = _filled(place, free_bytes, parts) if place.policy == "group" else place
            return replace(chosen, work=work)
    least = able[-1]
    raise ModelError(
        f"optimization.offload={asked}: the model needs {least.needed_bytes / GIB:.1f} GiB of GPU memory "
        f"({least.policy}), {free_bytes / GIB:.1f} are free: {_advice(asked, can_stream)}"
    )


@dataclass(frozen=True, slots=True)
class Room:
    """What a model's placement is chosen by, apart from the size of its images."""

    policy: str
    """The policy that was asked for, or `auto`."""
    free_bytes: int
    parts: WeightSizes
    work: Callable[[int], WorkingMemory]
    """From the pixels of an image to the memory that making it takes beside the weights."""
    can_stream: bool

    def placement(self, pixels: int) -> OffloadPlan:
        """Where the weights should be for images of so many pixels.

        Raises:
            ModelError: no policy leaves enough room.
        """
        return choose(self.policy, self.free_bytes, self.parts, self.work(pixels), can_stream=self.can_stream)


def _filled(place: OffloadPlan, free_bytes: int, parts: WeightSizes) -> OffloadPlan:
    """With as many blocks on the device as there is room for, then modulations: those are used once a batch."""
    room = int((free_bytes - place.needed_bytes) / (1 + _RESERVED_SHARE))
    blocks, taken = _fitting(parts.blocks, room)
    modulations = 0
    if blocks == len(parts.blocks):
        modulations, more = _fitting(parts.modulations, room - taken)
        taken += more
    needed_bytes = place.needed_bytes + int(taken * (1 + _RESERVED_SHARE))
    return replace(place, staying=(blocks, modulations), needed_bytes=needed_bytes)


def _fitting(sizes: Sequence[int], room: int) -> tuple[int, int]:
    """How many of evenly spread things fit, and their bytes."""
    for number in range(len(sizes), 0, -1):
        taken = sum(sizes[place] for place in spread_evenly(len(sizes), number))
        if taken <= room:
            return number, taken
    return 0, 0


def spread_evenly(total: int, number: int) -> frozenset[int]:
    """`number` of `total` places, the first among them, as far from each other as can be."""
    return frozenset(place * total // number for place in range(number))


def _with_reserve(num_bytes: int) -> int:
    return int(num_bytes * (1 + _RESERVED_SHARE)) + _RESERVE


def _advice(asked: str, can_stream: bool) -> str:
    if not can_stream:
        return "use optimization.hoist_constants=true, which is exact: then its blocks can come one after another"
    if asked == "auto":
        return (
            "free some of it, use optimization.vae_tiling=true, or make smaller images (sampling.max_pixels, "
            "sampling.height, sampling.width)"
        )
    return "use optimization.offload=auto, or free some of it"
