"""Checks the form of JSON values that other programs, or a damaged disk, may have written.

A `Shape` looks at a value and returns a sentence about the first part that has another form, or None.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Shape = Callable[[Any, str], str | None]
"""Takes the value and its path in the document."""

_DEEPEST = 32
_LARGEST = 1e300


def parse_object(content: bytes) -> dict[str, Any]:
    """The JSON object in `content`.

    Raises:
        ValueError: it is not JSON, not an object, or nested too deeply.
    """
    try:
        values = json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object")
    if _is_deep(values):
        raise ValueError("it is nested too deeply")
    return values


def anything(value: Any, path: str) -> str | None:
    """Any value."""
    del value, path
    return None


def text(value: Any, path: str) -> str | None:
    """Text that can be written as UTF-8."""
    if not isinstance(value, str):
        return f"{path} is not text"
    return f"{path} is not valid Unicode" if any("\ud800" <= character <= "\udfff" for character in value) else None


def number(value: Any, path: str) -> str | None:
    """A finite number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_finite = is_number and -_LARGEST < value < _LARGEST and not math.isnan(value)
    return None if is_finite else f"{path} is not a finite number"


def count(value: Any, path: str) -> str | None:
    """An integer from 0 on."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53
    return None if is_count else f"{path} is not a count"


def flag(value: Any, path: str) -> str | None:
    """True or false."""
    return None if isinstance(value, bool) else f"{path} is not true or false"


@dataclass(frozen=True, slots=True)
class Optional:
    """Null, or `shape`."""

    shape: Shape

    def __call__(self, value: Any, path: str) -> str | None:
        """See `Shape`."""
        return None if value is None else self.shape(value, path)


@dataclass(frozen=True, slots=True)
class Each:
    """A list of values of `shape`."""

    shape: Shape

    def __call__(self, value: Any, path: str) -> str | None:
        """See `Shape`."""
        if not isinstance(value, list):
            return f"{path} is not a list"
        faults = (self.shape(item, f"{path}[{place}]") for place, item in enumerate(value))
        return next((fault for fault in faults if fault is not None), None)


@dataclass(frozen=True, slots=True)
class ByName:
    """An object with any keys and values of `shape`."""

    shape: Shape

    def __call__(self, value: Any, path: str) -> str | None:
        """See `Shape`."""
        if not isinstance(value, dict):
            return f"{path} is not an object"
        faults = (text(name, f"a key of {path}") or self.shape(item, f"{path}.{name}") for name, item in value.items())
        return next((fault for fault in faults if fault is not None), None)


@dataclass(frozen=True, slots=True)
class Fields:
    """An object: `required` keys must be there, other `known` keys can be missing. Unknown keys can have any value."""

    known: Mapping[str, Shape]
    required: tuple[str, ...] = ()

    def __call__(self, value: Any, path: str) -> str | None:
        """See `Shape`."""
        if not isinstance(value, dict):
            return f"{path} is not an object"
        prefix = f"{path}." if path else ""
        missing = next((name for name in self.required if name not in value), None)
        if missing is not None:
            return f"{prefix}{missing} is missing"
        faults = (self._fault(name, item, prefix) for name, item in value.items())
        return next((fault for fault in faults if fault is not None), None)

    def faults(self, values: Mapping[str, Any]) -> list[str]:
        """The first fault of each key of `values` that has one."""
        found = (self._fault(name, item, "") for name, item in values.items())
        return [fault for fault in found if fault is not None]

    def shape_of(self, name: str) -> Shape:
        """The shape of the value of a key."""
        return self.known.get(name, _readable)

    def _fault(self, name: str, value: Any, prefix: str) -> str | None:
        return text(name, f"a key of {prefix or 'the object'}") or self.shape_of(name)(value, f"{prefix}{name}")


def sound_part(value: Any, shape: Shape) -> Any:
    """What is left of `value` without the parts that do not have their shape; None if nothing is.

    Places of lists of objects stay: a damaged object becomes what is left of it. Required keys can be missing then.
    """
    if shape(value, "") is None:
        return value
    if isinstance(shape, Optional):
        return sound_part(value, shape.shape)
    if isinstance(shape, Each) and isinstance(value, list):
        parts = [sound_part(item, shape.shape) for item in value]
        return [{} if part is None else part for part in parts] if isinstance(shape.shape, Fields) else []
    if isinstance(shape, Fields | ByName) and isinstance(value, dict):
        shapes = {name: shape.shape_of(name) if isinstance(shape, Fields) else shape.shape for name in value}
        names = [name for name in value if text(name, "") is None]
        known = {name: sound_part(value[name], shapes[name]) for name in names}
        return {name: part for name, part in known.items() if part is not None or shapes[name](None, "") is None}
    return None


def _readable(value: Any, path: str) -> str | None:
    """A value of an unknown key. It must be possible to write it again."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return f"{path} is not valid Unicode"
    return None


def _is_deep(values: Any) -> bool:
    level = [values]
    for _ in range(_DEEPEST):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return False
    return True
