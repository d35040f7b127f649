"""Chooses how much of a model stays on a GPU: the fastest policy that fits, from the sizes in bytes.

| policy | what is on the GPU |
| --- | --- |
| resident | all weights |
| text_encoders | transformer and VAE; the text encoders are loaded to encode prompts |
| group | VAE, and as much of the transformer as fits; other blocks, and those of the text encoder, are prefetched |
| model | either the text encoders or the transformer, and the VAE |
| sequential | the VAE; blocks are loaded one by one, without prefetching |

`working_memory` estimates what images take. A reserve is kept for kernels, CUDA graphs and fragmentation. This module
knows neither torch nor a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fluxexp.errors import ModelError

Policy = Literal["resident", "text_encoders", "group", "model", "sequential"]
"""From fast to slow."""

GIB = 1 << 30
_RESERVE = 3 * GIB // 4
"""Bytes kept free, in addition to `_RESERVED_FRACTION` of what is needed."""
_RESERVED_FRACTION = 0.05


@dataclass(frozen=True, slots=True)
class WeightSizes:
    """Sizes of a model's weights in bytes."""

    text: int
    """The text encoders without `text_blocks`."""
    text_blocks: Sequence[int]
    """Each block of the larger text encoder."""
    transformer: int
    """The transformer without its blocks."""
    blocks: Sequence[int]
    """Each block without the layers that compute its modulations."""
    modulations: Sequence[int]
    """Each layer that computes modulations. These layers are used once per batch, not once per step."""
    vae: int
    """With a ControlNet, which always stays on the GPU like the VAE."""

    @property
    def whole_text(self) -> int:
        """The text encoders with their blocks."""
        return self.text + sum(self.text_blocks)

    @property
    def whole_transformer(self) -> int:
        """The transformer with its blocks and modulations."""
        return self.transformer + sum(self.blocks) + sum(self.modulations)

    @property
    def all(self) -> int:
        """All weights."""
        return self.whole_text + self.whole_transformer + self.vae

    @property
    def slot(self) -> int:
        """The largest block or layer that is streamed: the size of a slot."""
        return max((*self.text_blocks, *self.blocks, *self.modulations), default=0)


@dataclass(frozen=True, slots=True)
class WorkingMemory:
    """Bytes that one image takes while it is made, in addition to weights, by stage."""

    encode: int
    """Encoding the prompt and the input image."""
    denoise: int
    decode: int

    def covers(self, other: WorkingMemory) -> bool:
        """Whether each stage has at least as much memory as in `other`."""
        return self.encode >= other.encode and self.denoise >= other.denoise and self.decode >= other.decode

    @property
    def peak(self) -> int:
        """The largest of the stages."""
        return max(self.encode, self.denoise, self.decode)


def working_memory(
    pixels: int, tokens: int, width: int, channels: int, item_bytes: int, modulation_bytes: int = 0
) -> WorkingMemory:
    """Estimate what an image takes, from its largest tensors.

    Denoising: about sixteen tensors (tokens, width) are alive in a block: stream, norm, queries, keys, values, the
    result of attention, and four to eight widths of the MLP. Decoding: four tensors with the channels of the VAE's
    second finest level, at full resolution. Encoding takes half of that.

    Args:
        pixels: number of pixels that the VAE processes at once.
        tokens: number of text and image tokens.
        width: of the transformer.
        channels: of the VAE's second finest level.
        item_bytes: bytes per element.
        modulation_bytes: size of the modulation table, and of the residuals of a ControlNet.
    """
    decode = 4 * pixels * channels * item_bytes
    return WorkingMemory(encode=decode // 2, denoise=16 * tokens * width * item_bytes + modulation_bytes, decode=decode)


@dataclass(frozen=True, slots=True)
class OffloadPlan:
    """Where the weights are, and how much memory that needs."""

    policy: Policy
    needed_bytes: int
    """The peak, with the reserve."""
    num_resident: tuple[int, int] = (0, 0)
    """Policies with slots: the number of the transformer's blocks, and of its modulation layers, that stay."""
    num_total: tuple[int, int] = (0, 0)
    """Policies with slots: the number of all blocks and of all modulation layers."""
    num_slots: int = 0
    """Slots for streamed blocks; 0: nothing is streamed block by block."""
    vae_alone: bool = False
    """Whether the transformer leaves the GPU while the VAE runs."""
    work: WorkingMemory = WorkingMemory(0, 0, 0)
    """The working memory that fits in addition to the weights."""

    @property
    def moves_transformer(self) -> bool:
        """Whether weights of the transformer's blocks change their address."""
        return self.policy == "model" or self.num_resident[0] < self.num_total[0]

    def places_weights_like(self, other: OffloadPlan) -> bool:
        """Whether both put all weights at the same places. The needed bytes and the sizes of images may differ."""
        return replace(self, needed_bytes=0, work=other.work) == replace(other, needed_bytes=0)

    @property
    def words(self) -> str:
        """A description for the summary."""
        (blocks, modulations), (all_blocks, all_modulations) = self.num_resident, self.num_total
        resident = f"{blocks} of {all_blocks} blocks and {modulations} of {all_modulations} modulations stay"
        details = f", {resident}" if self.policy == "group" else ""
        return f"{self.policy}{details}, at most {self.needed_bytes / GIB:.1f} GiB"


def offload_plans(parts: WeightSizes, work: WorkingMemory) -> Iterator[OffloadPlan]:
    """All possible plans, from fast to slow. The plan `group` has no resident blocks yet (`_with_residents`)."""
    yield OffloadPlan("resident", _with_reserve(parts.all + work.peak))
    text, transformer = parts.whole_text + work.encode, parts.whole_transformer
    others = max(work.denoise, work.decode)
    yield OffloadPlan("text_encoders", _with_reserve(parts.vae + transformer + max(text, others)))
    streamed = parts.vae + parts.transformer + max(parts.text + work.encode, others)
    num_total = (len(parts.blocks), len(parts.modulations))
    yield OffloadPlan("group", _with_reserve(streamed + 2 * parts.slot), num_slots=2, num_total=num_total)
    yield OffloadPlan("model", _with_reserve(parts.vae + max(text, transformer + others)))
    yield OffloadPlan(
        "model", _with_reserve(parts.vae + max(text, transformer + work.denoise, work.decode)), vae_alone=True
    )
    yield OffloadPlan("sequential", _with_reserve(streamed + parts.slot), num_slots=1, num_total=num_total)


def choose(
    asked: str, free_bytes: int, parts: WeightSizes, work: WorkingMemory, *, can_stream: bool = True
) -> OffloadPlan:
    """The fastest plan that fits into `free_bytes`.

    Args:
        asked: a policy, or `auto` for any.
        free_bytes: of GPU memory.
        parts: sizes of the weights.
        work: what images take.
        can_stream: whether the denoiser can stream its blocks.

    Raises:
        ModelError: no plan fits.
    """
    candidates = [plan for plan in offload_plans(parts, work) if asked in ("auto", plan.policy)]
    if not can_stream:
        candidates = [plan for plan in candidates if not plan.num_slots]
        if not candidates:
            raise ModelError(
                f"optimization.offload={asked} needs optimization.hoist_constants=true, which is exact: only its "
                "denoiser can stream blocks"
            )
    for plan in candidates:
        if plan.needed_bytes <= free_bytes:
            chosen = _with_residents(plan, free_bytes, parts) if plan.policy == "group" else plan
            return replace(chosen, work=work)
    smallest = candidates[-1]
    raise ModelError(
        f"optimization.offload={asked}: the model needs {smallest.needed_bytes / GIB:.1f} GiB of GPU memory with the "
        f"policy {smallest.policy}, but {free_bytes / GIB:.1f} GiB are free: {_advice(asked, can_stream)}"
    )


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """What the plan of a model depends on, except for the size of its images."""

    policy: str
    """The policy that was asked for, or `auto`."""
    free_bytes: int
    parts: WeightSizes
    work: Callable[[int], WorkingMemory]
    """From the number of pixels of an image to the memory that it takes in addition to weights."""
    can_stream: bool

    def plan(self, pixels: int) -> OffloadPlan:
        """The plan for images with this many pixels.

        Raises:
            ModelError: no plan fits.
        """
        return choose(self.policy, self.free_bytes, self.parts, self.work(pixels), can_stream=self.can_stream)


def _with_residents(plan: OffloadPlan, free_bytes: int, parts: WeightSizes) -> OffloadPlan:
    """`plan` with as many resident blocks as fit, and then as many modulation layers, which are used once per batch."""
    free = int((free_bytes - plan.needed_bytes) / (1 + _RESERVED_FRACTION))
    blocks, taken = _fitting(parts.blocks, free)
    modulations = 0
    if blocks == len(parts.blocks):
        modulations, more = _fitting(parts.modulations, free - taken)
        taken += more
    needed_bytes = plan.needed_bytes + int(taken * (1 + _RESERVED_FRACTION))
    return replace(plan, num_resident=(blocks, modulations), needed_bytes=needed_bytes)


def _fitting(sizes: Sequence[int], free: int) -> tuple[int, int]:
    """How many evenly spread items fit into `free` bytes, and their size."""
    for number in range(len(sizes), 0, -1):
        taken = sum(sizes[index] for index in spread_evenly(len(sizes), number))
        if taken <= free:
            return number, taken
    return 0, 0


def spread_evenly(total: int, number: int) -> frozenset[int]:
    """`number` of the indices below `total`, as evenly spread as possible. Index 0 is the first of them."""
    return frozenset(step * total // number for step in range(number))


def _with_reserve(num_bytes: int) -> int:
    return int(num_bytes * (1 + _RESERVED_FRACTION)) + _RESERVE


def _advice(asked: str, can_stream: bool) -> str:
    if not can_stream:
        return "use optimization.hoist_constants=true, which is exact and lets the blocks be streamed"
    if asked == "auto":
        return (
            "free GPU memory, use optimization.vae_tiling=true, or make smaller images (sampling.max_pixels, "
            "sampling.height, sampling.width)"
        )
    return "use optimization.offload=auto, or free GPU memory"
