"""Parses lines of the manifest for the index: only what planning and summaries need, and with all types checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_type_hints

import msgspec

from fluxexp.records import Record, without_surrogates

_Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
"""The index keeps counts in 32 bits."""
_STRICTER = {
    "attempt": Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)],
    "batch_size": _Count | None,
    "height": _Count | None,
    "width": _Count | None,
    "computed_steps": _Count | None,
    "t5_tokens_cut": _Count | None,
    "clip_tokens_cut": _Count | None,
    "negative_t5_tokens_cut": _Count | None,
    "negative_clip_tokens_cut": _Count | None,
    "bytes": Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)] | None,
    "version": Literal[1],
}
"""Types of the fields that the index keeps as numbers, and of the version that this fluxexp knows."""

if TYPE_CHECKING:
    _Line = Record
else:
    _types = get_type_hints(Record) | _STRICTER
    _Line = msgspec.defstruct(
        "_Line",
        [
            (
                field.name,
                _types[field.name],
                *([] if field.default is MISSING else [field.default]),
                *([] if field.default_factory is MISSING else [msgspec.field(default_factory=field.default_factory)]),
            )
            for field in fields(Record)
        ],
        kw_only=True,
        gc=False,
    )
    """A `Record` that is decoded several times faster. The garbage collector never visits it."""

_decoder = msgspec.json.Decoder(_Line)


class Attempt(NamedTuple):
    """One attempt at a task, as the index keeps it. -1 stands for None."""

    is_ok: bool
    attempt: int
    inputs: str | None
    stream: int
    """Index of the stream."""
    position: int
    """Where the line starts in the stream."""
    file: str | None
    """Name of the image file, without its folder."""
    num_bytes: int
    batch_size: int
    height: int
    width: int
    computed_steps: int
    t5_tokens_cut: int
    clip_tokens_cut: int
    negative_t5_tokens_cut: int
    negative_clip_tokens_cut: int
    condition_s: float
    denoise_s: float
    decode_s: float
    error: str | None
    notes: tuple[str, ...]


def parse_line(line: bytes, stream: int, position: int) -> tuple[str, Attempt]:
    """The task key and the attempt of a line.

    Raises:
        ValueError: the line is damaged, or a later fluxexp wrote it.
    """
    try:
        try:
            record = _decoder.decode(line)
        except ValueError:
            record = _decoder.decode(without_surrogates(line))
    except RecursionError as error:
        raise ValueError(str(error)) from None
    return record.key, attempt_of(record, stream, position)


def parse_lines(lines: Sequence[bytes]) -> list[Record] | None:
    """The records of `lines`, or None if one of them is damaged."""
    decode = _decoder.decode
    try:
        return [decode(line) for line in lines]
    except (ValueError, RecursionError):
        return None


def attempt_of(record: Record, stream: int, position: int) -> Attempt:
    """What the index keeps of `record`, which starts at `position` of stream number `stream`."""
    seconds = record.seconds
    return Attempt(
        is_ok=record.status == "ok",
        attempt=record.attempt,
        inputs=record.inputs,
        stream=stream,
        position=position,
        file=file_name(record.file),
        num_bytes=_or_minus_1(record.bytes),
        batch_size=_or_minus_1(record.batch_size),
        height=_or_minus_1(record.height),
        width=_or_minus_1(record.width),
        computed_steps=_or_minus_1(record.computed_steps),
        t5_tokens_cut=_or_minus_1(record.t5_tokens_cut),
        clip_tokens_cut=_or_minus_1(record.clip_tokens_cut),
        negative_t5_tokens_cut=_or_minus_1(record.negative_t5_tokens_cut),
        negative_clip_tokens_cut=_or_minus_1(record.negative_clip_tokens_cut),
        condition_s=seconds.get("condition", 0.0),
        denoise_s=seconds.get("denoise", 0.0),
        decode_s=seconds.get("decode", 0.0),
        error=record.error,
        notes=tuple(record.notes),
    )


def columns(records: Sequence[Record], stream: int, starts: Sequence[int]) -> dict[str, Sequence[Any]]:
    """The same as `attempt_of`, for many records: values by field. Several times faster."""
    seconds = [record.seconds for record in records]
    return {
        "is_ok": [record.status == "ok" for record in records],
        "attempt": [record.attempt for record in records],
        "stream": [stream] * len(records),
        "position": starts,
        "num_bytes": _or_minus_1s([record.bytes for record in records]),
        "batch_size": _or_minus_1s([record.batch_size for record in records]),
        "height": _or_minus_1s([record.height for record in records]),
        "width": _or_minus_1s([record.width for record in records]),
        "computed_steps": _or_minus_1s([record.computed_steps for record in records]),
        "t5_tokens_cut": _or_minus_1s([record.t5_tokens_cut for record in records]),
        "clip_tokens_cut": _or_minus_1s([record.clip_tokens_cut for record in records]),
        "negative_t5_tokens_cut": _or_minus_1s([record.negative_t5_tokens_cut for record in records]),
        "negative_clip_tokens_cut": _or_minus_1s([record.negative_clip_tokens_cut for record in records]),
        "condition_s": [stages.get("condition", 0.0) for stages in seconds],
        "denoise_s": [stages.get("denoise", 0.0) for stages in seconds],
        "decode_s": [stages.get("decode", 0.0) for stages in seconds],
    }


def file_name(key: str | None) -> str | None:
    """Name of the file `key`, without its folder."""
    return None if key is None else key.rpartition("/")[2]


def _or_minus_1s(values: Sequence[int | None]) -> list[int]:
    return [-1 if value is None else value for value in values]


def _or_minus_1(value: int | None) -> int:
    return -1 if value is None else value


def winner(attempts: Sequence[Attempt]) -> Attempt:
    """The attempt that counts: see `manifest.merge`."""
    known = [attempt for attempt in attempts if attempt.inputs is not None]
    latest = max(enumerate(known), key=lambda item: (item[1].attempt, item[0]))[1].inputs if known else None
    valid = [attempt for attempt in attempts if attempt.inputs in (None, latest)]
    return max(enumerate(valid), key=lambda item: (item[1].is_ok, item[1].attempt, item[0]))[1]
