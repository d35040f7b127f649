"""Failed tasks of a run or a sweep, grouped by the kind of their error. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fluxexp.records import Record

MAX_LISTED = 100
"""About how many failed tasks a page lists by sample key, over all kinds of errors."""
_VARYING = "\u2026"
"""Stands for a part of a message that differs between errors of one kind."""
_MIN_KEY = 3
"""Shorter sample keys are not replaced, because they also occur as parts of sentences."""
_START = r"(?:^|(?<=: ))"
_ABSOLUTE = r"(?:(?:[A-Za-z]:)?[\\/]|~[\\/]|\.{1,2}[\\/]|[a-z][a-z0-9+.-]*://)"
_SUFFIX = r"\.(?:png|jpe?g|webp|tiff?|bmp|gif|avif|ico|jsonl?|csv|parquet|txt|safetensors|ya?ml|pt|npz?)"
_PATTERNS = [
    re.compile(pattern)
    for pattern in (
        # A place at the start of a message or after its type, up to the next colon. It may contain spaces.
        rf"{_START}{_ABSOLUTE}[^:\n]*(?=: )",
        rf"{_START}[^:\n]*(?:{_SUFFIX}|, row \d+)(?=: )",
        # Places inside of quotes, which may contain spaces, too; then places in the middle of a sentence.
        rf"(?<=')(?:{_ABSOLUTE}[^'\n]*|[^'\n]*{_SUFFIX})(?=')",
        rf'(?<=")(?:{_ABSOLUTE}[^"\n]*|[^"\n]*{_SUFFIX})(?=")',
        rf"(?<![\w\u2026]){_ABSOLUTE}[^\s:'\"(),;]+",
        rf"(?<![\w\u2026])[\w%@+./\\-]+{_SUFFIX}\b",
        # Addresses, hashes and numbers. Digits at the end of a word, as in float32, are a part of the word.
        r"\b0x[0-9a-fA-F]+\b",
        r"\b(?=[a-f]*\d)[0-9a-f]{8,}\b",
        r"(?<![\w.])[-+]?\d+(?:[,_]\d{3})*(?:\.\d+)?(?:[eE][-+]?\d+)?",
    )
]
_REPEATED = re.compile(r"\u2026(?:(?:, ?| x | \u00d7 |x|/|\.)\u2026)+")


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """The tasks that failed with the same kind of error."""

    kind: str
    """The error message, with an ellipsis for each part that differs: paths, keys and numbers."""
    count: int
    example: str
    """The message of the first task."""
    example_key: str
    """The sample key of the first task."""
    samples: Sequence[str]
    """Different sample keys of the first of these tasks."""
    num_samples: int
    """Number of different samples."""


def failures(records: Iterable[Record]) -> list[FailureGroup]:
    """Failed tasks grouped by kind of error, the most frequent kind first.

    Each group lists at least one sample key. All groups share `MAX_LISTED` keys equally.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record.status == "failed":
            groups.setdefault(kind_of(record), []).append(record)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    num_listed = max(1, MAX_LISTED // max(1, len(ordered)))
    return [_group(kind, found, num_listed) for kind, found in ordered]


def kind_of(record: Record) -> str:
    """The kind of a failed task's error: its message without the parts that only name this task."""
    text = _message(record)
    keys = sorted({str(record.sample_key), str(record.key)}, key=len, reverse=True)
    for key in keys:
        if len(key) >= _MIN_KEY:
            text = re.sub(rf"(?<!\w){re.escape(key)}(?!\w)", _VARYING, text)
    for pattern in _PATTERNS:
        text = pattern.sub(_VARYING, text)
    return _REPEATED.sub(_VARYING, text)


def _group(kind: str, records: Sequence[Record], num_listed: int) -> FailureGroup:
    samples = list(dict.fromkeys(record.sample_key for record in records))
    is_one_message = len({_message(record) for record in records}) == 1
    example = _message(records[0])
    return FailureGroup(
        kind=example if is_one_message else kind,
        count=len(records),
        example=example,
        example_key=records[0].sample_key,
        samples=samples[:num_listed],
        num_samples=len(samples),
    )


def _message(record: Record) -> str:
    return str(record.error or "unknown error")
