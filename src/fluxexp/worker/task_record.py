"""Makes the record of one attempt at a task, for the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fluxexp.errors import FluxexpError
from fluxexp.models.base import CutTexts, PromptPair
from fluxexp.parallel.topology import Topology
from fluxexp.records import Record
from fluxexp.worker.prefetch import PreparedSample, UnreadableSample


def make_record(
    item: PreparedSample | UnreadableSample,
    topology: Topology,
    *,
    context_size: int,
    error: object = None,
    seconds: Mapping[str, float] | None = None,
    batch_size: int | None = None,
    computed_steps: int | None = None,
    cut_tokens: CutTexts | None = None,
    notes: Sequence[str] = (),
) -> Record:
    """Make the record of an attempt: a failed one if there is an `error`, else an `ok` one without its image file.

    Args:
        item: the task and its sample.
        topology: of this rank.
        context_size: number of ranks that make the image together.
        error: why the attempt failed.
        seconds: of each stage, for one image.
        batch_size: images of the batch.
        computed_steps: full evaluations of the denoiser.
        cut_tokens: tokens of the prompts that the text encoders did not read.
        notes: what a user should know of the result, besides the notes of the sample.
    """
    record = Record.of(
        item.task,
        error=None if error is None else describe(error),
        rank=topology.rank,
        device=topology.device_name,
        attempt=item.order.earlier_attempts(item.task) + 1,
        inputs=item.inputs,
    )
    if isinstance(item, PreparedSample):
        placed = item.placed
        record = replace(
            record,
            prompt=item.sample.prompt,
            prompt_2=item.prompt.t5 if isinstance(item.prompt, PromptPair) else None,
            negative_prompt=item.negative_prompt,
            height=placed.height,
            width=placed.width,
            covered=round(placed.frame.covered, 4),
            notes=item.sample.notes,
        )
    prompt, negative = (cut_tokens.prompt, cut_tokens.negative_prompt) if cut_tokens else (None, None)
    return replace(
        record,
        batch_size=batch_size,
        seconds=dict(seconds or {}),
        computed_steps=computed_steps,
        context_size=context_size,
        t5_tokens_cut=None if prompt is None else prompt.t5,
        clip_tokens_cut=None if prompt is None else prompt.clip,
        negative_t5_tokens_cut=None if negative is None else negative.t5,
        negative_clip_tokens_cut=None if negative is None else negative.clip,
        notes=[*record.notes, *notes],
    )


def describe(error: object) -> str:
    """The text of an error in the manifest. Unexpected errors include their type."""
    if isinstance(error, Exception) and not isinstance(error, FluxexpError):
        return f"{type(error).__name__}: {error}"
    return str(error)
