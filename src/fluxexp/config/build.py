"""Builds frozen dataclasses from plain values, and reports all problems at once instead of only the first.

It supports these types: int, float, bool, str, `X | None`, `Literal`, `bool | Literal`, `list[X]`,
`list[X] | Literal`, `X | list[X]`, dataclasses, `Annotated` with rules, and tagged unions. A tagged union is a union of
dataclasses that share a `Literal` (or `OneOf`) field; its value selects the dataclass.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from fluxexp.config.rules import OneOf
from fluxexp.errors import ConfigError, Problem

T = TypeVar("T")
_INVALID = object()


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """Build an instance of dataclass `cls` from nested plain values.

    Raises:
        ConfigError: with a `Problem` for each key that is unknown, missing, of the wrong type or out of range.
    """
    found = _Findings([])
    result = _build_dataclass(cls, values, "", found)
    if found.problems:
        raise ConfigError(found.problems)
    return result  # type: ignore[no-any-return]


def build_leniently(cls: type[T], values: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[T, list[str]]:
    """Build like `build`, from values that another version of fluxexp wrote.

    Args:
        cls: the dataclass.
        values: nested plain values.
        defaults: the values of keys that may be missing, by dotted key.

    Returns:
        the instance, and the dotted names of ignored keys: those that `cls` does not have.

    Raises:
        ConfigError: as `build`, except for unknown keys and for missing keys that have a default.
    """
    found = _Findings([], defaults, [])
    result = _build_dataclass(cls, values, "", found)
    if found.problems:
        raise ConfigError(found.problems)
    return result, found.ignored or []


@dataclass(slots=True)
class _Findings:
    """What `build` found. Unknown keys are problems, unless `ignored` is a list: then it collects them."""

    problems: list[Problem]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    ignored: list[str] | None = None

    def add_unknown(self, key: str, value: object, hint: str) -> None:
        if self.ignored is None:
            self.problems.append(Problem(key, "is not a key", value, hint))
        else:
            self.ignored.append(key)

    def default(self, key: str) -> Any:
        """The default of a key, `{}` for a group with keys that have defaults, else MISSING."""
        if key in self.defaults:
            return self.defaults[key]
        return {} if any(name.startswith(f"{key}.") for name in self.defaults) else MISSING


def nearest(name: str, candidates: Iterable[str], similarity: float = 0.6) -> str | None:
    """The candidate that is most similar to `name`; None if none has at least this `similarity` (0 to 1)."""
    found = difflib.get_close_matches(name, list(candidates), n=1, cutoff=similarity)
    return found[0] if found else None


def unknown_name(name: str, candidates: Iterable[str], noun: str) -> str:
    """Make the hint for an unknown name: the most similar name, if any, and all names."""
    names = sorted(candidates)
    near = nearest(name, names)
    listing = ", ".join(names)
    return f"did you mean {near!r}? ({noun}: {listing})" if near else f"{noun}: {listing}"


@cache
def field_types(cls: type) -> dict[str, Any]:
    """The resolved annotations of a dataclass, with `Annotated`."""
    return get_type_hints(cls, include_extras=True)


def _build_dataclass(cls: type, values: object, path: str, found: _Findings) -> Any:
    if not isinstance(values, Mapping):
        found.problems.append(Problem(path, "must be a group of keys", values))
        return _INVALID
    hints = {spec.name: field_types(cls)[spec.name] for spec in fields(cls)}
    prefix = f"{path}." if path else ""
    for name in values:
        if name not in hints:
            found.add_unknown(f"{prefix}{name}", values[name], unknown_name(str(name), hints, "keys here"))
    arguments = {}
    for spec in fields(cls):
        given = values[spec.name] if spec.name in values else found.default(f"{prefix}{spec.name}")
        if given is MISSING:
            if spec.default is MISSING and spec.default_factory is MISSING:
                found.problems.append(
                    Problem(f"{prefix}{spec.name}", "is missing", hint=f"add {prefix}{spec.name}=VALUE")
                )
            continue
        arguments[spec.name] = _convert(hints[spec.name], given, f"{prefix}{spec.name}", found)
    if any(problem.key.startswith(prefix) for problem in found.problems) or _INVALID in arguments.values():
        return _INVALID
    return cls(**arguments)


def _convert(hint: Any, value: object, path: str, found: _Findings) -> Any:
    origin = get_origin(hint)
    if allowed := _allowed(hint):
        return _convert_literal(allowed, value, path, found)
    if origin is Annotated:
        return _convert_annotated(hint, value, path, found)
    if origin in (Union, types.UnionType):
        return _convert_union(get_args(hint), value, path, found)
    if origin is list:
        return _convert_list(get_args(hint)[0], value, path, found)
    if is_dataclass(hint) and isinstance(hint, type):
        return _build_dataclass(hint, value, path, found)
    return _convert_scalar(hint, value, path, found)


def _allowed(hint: Any) -> tuple[Any, ...]:
    """The values that a `Literal` or a `OneOf` rule allows; empty for other types."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    rules = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((rule.names for rule in rules if isinstance(rule, OneOf)), ())


def _convert_annotated(hint: Any, value: object, path: str, found: _Findings) -> Any:
    inner, *rules = get_args(hint)
    converted = _convert(inner, value, path, found)
    if converted is _INVALID or converted is None:
        return converted
    for rule in rules:
        violation = rule.violation(converted)
        if violation:
            found.problems.append(Problem(path, violation, value))
            return _INVALID
    return converted


def _convert_union(options: tuple[Any, ...], value: object, path: str, found: _Findings) -> Any:
    if value is None and type(None) in options:
        return None
    options = tuple(option for option in options if option is not type(None))
    if len(options) == 1:
        return _convert(options[0], value, path, found)
    if bool in options:
        return _convert_switch(options, value, path, found)
    if any(get_origin(option) is list for option in options):
        return _convert_list_or_word(options, value, path, found)
    return _convert_tagged(options, value, path, found)


def _convert_switch(options: tuple[Any, ...], value: object, path: str, found: _Findings) -> Any:
    """Convert `bool | Literal[...]`: true, false or a word."""
    words = [word for option in options if get_origin(option) is Literal for word in get_args(option)]
    if isinstance(value, bool) or value in words:
        return value
    found.problems.append(
        Problem(path, f"must be true, false or {' or '.join(words)}", "null" if value is None else value)
    )
    return _INVALID


def _convert_list_or_word(options: tuple[Any, ...], value: object, path: str, found: _Findings) -> Any:
    """Convert `list[X] | Literal[...]`, a list or a word, and `X | list[X]`, one value or several."""
    words = [word for option in options if get_origin(option) is Literal for word in get_args(option)]
    if value in words:
        return value
    if isinstance(value, (list, tuple)):
        return _convert(next(option for option in options if get_origin(option) is list), value, path, found)
    if single := [option for option in options if get_origin(option) not in (list, Literal)]:
        return _convert(single[0], value, path, found)
    shown = "null" if value is None else value
    found.problems.append(Problem(path, f"must be a list or {' or '.join(words)}", shown))
    return _INVALID


def _convert_tagged(options: tuple[type, ...], value: object, path: str, found: _Findings) -> Any:
    """Convert a tagged union. The tag is the first field with a fixed set of values."""
    tag = next(name for name, hint in field_types(options[0]).items() if _allowed(hint))
    by_name = {name: option for option in options for name in _allowed(field_types(option)[tag])}
    given = value.get(tag) if isinstance(value, Mapping) else None
    if not isinstance(given, str) or given not in by_name:  # YAML can give a list, which no dict can look up
        found.problems.append(
            Problem(f"{path}.{tag}", "is not known", given, unknown_name(str(given), by_name, "allowed"))
        )
        return _INVALID
    return _build_dataclass(by_name[given], value, path, found)


def _convert_literal(allowed: tuple[Any, ...], value: object, path: str, found: _Findings) -> Any:
    if value in allowed and not isinstance(value, bool):
        return value
    hint = unknown_name(str(value), map(str, allowed), "allowed")
    found.problems.append(Problem(path, "is not allowed", "null" if value is None else value, hint))
    return _INVALID


def _convert_list(item: Any, value: object, path: str, found: _Findings) -> Any:
    if not isinstance(value, (list, tuple)):
        found.problems.append(Problem(path, "must be a list", value, f"write {path}=[{value}]"))
        return _INVALID
    items = [_convert(item, element, f"{path}[{i}]", found) for i, element in enumerate(value)]
    return _INVALID if _INVALID in items else items


_SCALAR_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _convert_scalar(hint: type, value: object, path: str, found: _Findings) -> Any:
    is_bool = isinstance(value, bool)
    if hint is float and isinstance(value, (int, float)) and not is_bool:
        try:
            return float(value)
        except OverflowError:  # an integer of hundreds of digits
            found.problems.append(Problem(path, "must be a number that a float can hold", str(value)))
            return _INVALID
    if isinstance(value, hint) and (hint is bool or not is_bool):
        return value
    if hint is str and isinstance(value, (int, float)):
        # The command line quotes such values. YAML has already changed them: 007 is 7, and 1e3 is 1000.0.
        found.problems.append(Problem(path, "must be text", value, "YAML does not read it as text: put it in quotes"))
        return _INVALID
    one = "it has one value; to compare several, sweep: -m " + f"{path}=A,B" if isinstance(value, list) else None
    found.problems.append(Problem(path, f"must be {_SCALAR_WORDS[hint]}", "null" if value is None else value, one))
    return _INVALID
