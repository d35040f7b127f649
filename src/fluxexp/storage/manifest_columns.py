"""What the index of the manifest keeps: numbers in columns, values that most rows do not have, and damaged lines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

from fluxexp.storage.manifest_line import Attempt

T = TypeVar("T")

COLUMNS = {
    "is_ok": "b",
    "attempt": "i",
    "stream": "i",
    "position": "q",
    "num_bytes": "q",
    "batch_size": "i",
    "height": "i",
    "width": "i",
    "computed_steps": "i",
    "t5_tokens_cut": "i",
    "clip_tokens_cut": "i",
    "negative_t5_tokens_cut": "i",
    "negative_clip_tokens_cut": "i",
    "condition_s": "d",
    "denoise_s": "d",
    "decode_s": "d",
}
"""Fields of `Attempt` that are columns, with their type codes of `array`."""


@dataclass(slots=True)
class Damage:
    """Lines that were left out."""

    num_lines: int = 0
    first: str = ""
    """Stream, line number and reason of the first one."""
    _num_said: int = 0

    def has_news(self) -> bool:
        """Whether there are damaged lines since the last call."""
        said, self._num_said = self._num_said, self.num_lines
        return self.num_lines > said

    def sentence(self) -> str:
        """For the user; empty if there is no damage."""
        if not self.num_lines:
            return ""
        lines = "1 damaged line" if self.num_lines == 1 else f"{self.num_lines} damaged lines"
        return f"{lines} of the manifest left out, so these attempts count as not made ({self.first})"


@dataclass(slots=True)
class Sparse:
    """What most rows do not have, by row."""

    errors: dict[int, str] = field(default_factory=dict)
    inputs: dict[int, str] = field(default_factory=dict)
    notes: dict[int, tuple[str, ...]] = field(default_factory=dict)
    files: dict[int, str] = field(default_factory=dict)
    """Names of image files that are not the task key with an extension."""
    _known: dict[Any, Any] = field(default_factory=dict)
    """Equal notes and errors are kept once."""

    def set(self, row: int, attempt: Attempt, *, is_other: bool) -> None:
        """Replace the values of `row`. `is_other`: the name of its file is not the task key with an extension."""
        _set(self.errors, row, self._once(attempt.error))
        _set(self.inputs, row, attempt.inputs)
        _set(self.notes, row, self._once(attempt.notes or None))
        _set(self.files, row, attempt.file if is_other else None)

    def _once(self, value: T) -> T:
        return value if value is None else self._known.setdefault(value, value)


def _set(column: dict[int, T], row: int, value: T | None) -> None:
    if value is not None:
        column[row] = value
    else:
        column.pop(row, None)
