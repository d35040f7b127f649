"""What type a key of the config has, by its dotted name."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from fluxexp.config.build import field_types


def is_text(cls: type, key: str) -> bool:
    """Whether the dotted `key` of dataclass `cls` holds text, or a list of texts, in at least one variant of its group.

    An unknown key does not.
    """
    hints: list[Any] = [cls]
    for part in key.split("."):
        groups = [hint for hint in hints if is_dataclass(hint) and isinstance(hint, type)]
        hints = [plain for group in groups if part in field_types(group) for plain in _plain(field_types(group)[part])]
    return str in hints


def _plain(hint: Any) -> Iterator[Any]:
    """The types of a hint without rules, of all variants; of a list, the types of its items."""
    origin = get_origin(hint)
    if origin is Annotated:
        yield from _plain(get_args(hint)[0])
    elif origin in (Union, types.UnionType, list):
        for option in get_args(hint):
            yield from _plain(option)
    else:
        yield hint
