"""Parses lines of the manifest for the index: only what planning and summaries need, and with all types checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, NamedTuple, get_type_hints

import msgspec

from fluxexp.records import RECORD_VERSION, Record

if TYPE_CHECKING:
    _Line = Record
else:
    _Line = msgspec.defstruct(
        "_Line",
        [
            (
                field.name,
                get_type_hints(Record)[field.name],
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
_MOST = 1 << 31
"""Counts in a record are below this. The index keeps them in 32 bits."""


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
    computed_steps: int
    t5_tokens_cut: int
    clip_tokens_cut: int
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
        record = _decoder.decode(line)
    except RecursionError as error:
        raise ValueError(str(error)) from None
    if record.version != RECORD_VERSION:
        raise ValueError(f"its version is {record.version}, and this fluxexp knows only version {RECORD_VERSION}")
    numbers = (record.computed_steps, record.t5_tokens_cut, record.clip_tokens_cut)
    if not 0 < record.attempt < _MOST or any(number is not None and not 0 <= number < _MOST for number in numbers):
        raise ValueError("a count is out of range")
    if record.bytes is not None and not 0 <= record.bytes < 1 << 62:
        raise ValueError("`bytes` is out of range")
    seconds: Mapping[str, float] = record.seconds
    return record.key, Attempt(
        record.status == "ok",
        record.attempt,
        record.inputs,
        stream,
        position,
        None if record.file is None else record.file.rpartition("/")[2],
        _or_minus_1(record.bytes),
        *map(_or_minus_1, numbers),
        seconds.get("condition", 0.0),
        seconds.get("denoise", 0.0),
        seconds.get("decode", 0.0),
        record.error,
        tuple(record.notes),
    )


def _or_minus_1(value: int | None) -> int:
    return -1 if value is None else value


def winner(attempts: Sequence[Attempt]) -> Attempt:
    """The attempt that counts: see `manifest.merge`."""
    known = [attempt for attempt in attempts if attempt.inputs is not None]
    latest = max(enumerate(known), key=lambda item: (item[1].attempt, item[0]))[1].inputs if known else None
    valid = [attempt for attempt in attempts if attempt.inputs in (None, latest)]
    return max(enumerate(valid), key=lambda item: (item[1].is_ok, item[1].attempt, item[0]))[1]
