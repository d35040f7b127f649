"""Overrides as Python values, written in Hydra's grammar: `{"sampling.steps": 4}` is `sampling.steps=4`."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike, fspath
from typing import Any

from fluxexp.errors import ConfigError, Problem

Overrides = str | Sequence[str] | Mapping[str, Any]
"""A command line (`"+experiment=fill sampling.steps=4"`), a list of overrides, or values by key."""

_PLAIN = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./-]*")
"""Texts that need no quotes."""
_WORDS = ("null", "none", "~")
"""Texts that would not stay texts without quotes."""


def as_arguments(overrides: Overrides) -> list[str]:
    """The arguments of the command line for `overrides`.

    Raises:
        ConfigError: a value has no form in Hydra's grammar.
    """
    if isinstance(overrides, str):
        try:
            return shlex.split(overrides)
        except ValueError as error:
            raise ConfigError(Problem("overrides", f"cannot be read as a command line: {error}", overrides)) from None
    if isinstance(overrides, Mapping):
        return [f"{key}={_text(key, value)}" for key, value in overrides.items()]
    if wrong := [override for override in overrides if not isinstance(override, str)]:
        hint = 'write "KEY=VALUE", or give a mapping of values by key'
        raise ConfigError(Problem("overrides", "must be texts", wrong[0], hint))
    return list(overrides)


def as_axes(axes: Mapping[str, Iterable[Any]]) -> list[str]:
    """The arguments for a sweep over all combinations of the values of `axes`.

    Raises:
        ConfigError: an axis has no values, or one of them has no form in Hydra's grammar.
    """
    found, problems = [], []
    for key, values in axes.items():
        listed = [] if isinstance(values, str) or not isinstance(values, Iterable) else list(values)
        if not listed:
            hint = f'write {{"{key}": [VALUE, VALUE]}}'
            problems.append(Problem(key, "an axis of a sweep must be a list of values", values, hint))
        elif len(listed) == 1:
            found.append(f"{key}={_text(key, listed[0])}")
        else:
            found.append(f"{key}={','.join(_text(key, value) for value in listed)}")
    if problems:
        raise ConfigError(problems)
    return found


def _text(key: str, value: Any) -> str:
    """`value` in Hydra's grammar."""
    value = value.item() if hasattr(value, "item") and not getattr(value, "shape", ()) else value  # of NumPy
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _number(key, value)
    if isinstance(value, PathLike):
        value = fspath(value)
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) and value.lower() not in _WORDS else _quoted(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_text(key, name)}:{_text(key, one)}" for name, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_text(key, one) for one in value) + "]"
    hint = "use text, numbers, booleans, None, paths, or lists and mappings of them"
    raise ConfigError(Problem(key, f"a value of type {type(value).__name__} cannot be an override", value, hint))


def _number(key: str, value: float) -> str:
    if math.isfinite(value):
        return repr(value)
    raise ConfigError(Problem(key, "must be a finite number", value))


def _quoted(text: str) -> str:
    """Text in quotes. A backslash keeps quotes and `${` from their meaning, and doubles the backslashes before them."""
    escaped = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', escaped)
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped)
    return f'"{escaped}"'
