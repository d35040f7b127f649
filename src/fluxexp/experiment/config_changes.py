"""Configs of many runs as one config and what differs from it: a sweep of thousands of points is a small message."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def config_changes(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """What `values` has other than `base`, by dotted path. Mappings with other keys are replaced as a whole."""
    return dict(_changes(base, values, ""))


def with_changes(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `config_changes`."""
    values = dict(base)
    for path, value in changes.items():
        *parents, name = path.split(".")
        place = values
        for parent in parents:
            place[parent] = dict(place[parent])  # `base` stays as it is
            place = place[parent]
        place[name] = value
    return values


def _changes(base: Mapping[str, Any], values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        known = base[name]
        if type(value) is type(known) and value == known:
            continue
        if _is_group(value) and _is_group(known) and value.keys() == known.keys():
            yield from _changes(known, value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _is_group(value: Any) -> bool:
    """Whether parts of `value` can have paths of their own."""
    return isinstance(value, Mapping) and all(isinstance(key, str) and "." not in key for key in value)
