"""Explain wrong overrides: unknown group files, unknown keys, and several values outside of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from hydra.core.override_parser.types import Glob, Override
from omegaconf import OmegaConf

from fluxexp.config.build import nearest, unknown_name
from fluxexp.errors import ConfigError, Problem

Keys = Mapping[str, Any]
GroupOptions = Callable[[str], Sequence[str]]

_ADDED_GROUPS = ("experiment",)


def explain_overrides(
    overrides: Sequence[Override], multirun: bool, options: GroupOptions, base: Callable[[], Any]
) -> None:
    """Raise ConfigError with a problem for each wrong override.

    Args:
        overrides: of the command line.
        multirun: whether the command is a sweep.
        options: returns the names of the files of a group; empty for a name that is not a group.
        base: composes the config of the chosen group files. Its keys are the valid ones.
    """
    problems = [problem for override in overrides for problem in _check_choice(override, multirun, options)]
    if problems:
        raise ConfigError(problems)
    keyed = [override for override in overrides if _sets_a_key(override, options)]
    if not keyed:
        return
    values = cast("Keys", OmegaConf.to_container(base(), resolve=False))
    groups = [name for name in values if options(name)] + list(_ADDED_GROUPS)
    problems = [
        problem
        for override in keyed
        for problem in (list(_check_subgroup(override, options)) or _check_key(override, values, groups))
    ]
    if problems:
        raise ConfigError(problems)


def _sets_a_key(override: Override, options: GroupOptions) -> bool:
    key = override.key_or_group
    return key.split(".")[0].split("/")[0] != "hydra" and not options(key)


def _check_choice(override: Override, multirun: bool, options: GroupOptions) -> Iterator[Problem]:
    key = override.key_or_group
    if override.is_sweep_override() and not multirun:
        yield Problem(
            key,
            "has several values, but the command is not a sweep",
            override.get_value_string(),
            f"sweep with `-m ... {override.input_line}`, or quote it: {key}='\"...\"'",
        )
        return
    files = options(key)
    if not files or override.is_delete() or key.split("/")[0] == "hydra":
        return
    if key in _ADDED_GROUPS and not override.is_add():
        yield Problem(
            key, "must be added with a plus sign", override.get_value_string(), f"write +{override.input_line}"
        )
        return
    if key not in _ADDED_GROUPS and override.is_add():
        plain = f"{key}={override.get_value_string()}"
        yield Problem(key, "must be chosen without a plus sign", override.get_value_string(), f"write {plain}")
        return
    for value in _values(override):
        if value not in files and value != "null":
            yield Problem(key, "is not a file of this group", value, unknown_name(value, files, "allowed"))


def _values(override: Override) -> list[str]:
    if isinstance(override.value(), Glob):
        return []  # a pattern matches only existing files
    if override.is_choice_sweep():
        return [str(value) for value in override.sweep_string_iterator()]
    if override.is_sweep_override():
        return []
    value = override.value()
    return [str(item) for item in value] if isinstance(value, list) else [str(override.get_value_element_as_str())]


def _check_subgroup(override: Override, options: GroupOptions) -> Iterator[Problem]:
    """Find subgroups that are written with a dot: a slash chooses a subgroup, a dot sets a key."""
    key = override.key_or_group
    group = key.replace(".", "/")
    if "." in key and not override.is_delete() and set(_values(override)) & set(options(group)):
        given = override.get_value_string()
        yield Problem(key, "is a config group, which needs a slash", given, f"write {group}={given}")


def _check_key(override: Override, values: Keys, groups: Sequence[str]) -> Iterator[Problem]:
    node: Any = values
    parts = override.key_or_group.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(node, Mapping) or part not in node:
            given = None if override.is_delete() else override.get_value_string()
            hint = _suggest(parts[:depth], parts[depth:], node, values, groups)
            yield Problem(override.key_or_group, "is not a key", given, hint)
            return
        node = node[part]
    if isinstance(node, Mapping) and not override.is_delete() and parts[0] in groups and len(parts) == 1:
        yield Problem(
            override.key_or_group,
            "is not a file of this group",
            override.get_value_string(),
            "name a file of the group",
        )


def _suggest(above: list[str], wrong: list[str], node: Any, values: Keys, groups: Sequence[str]) -> str:
    """The key that the user probably meant: first among the siblings, then anywhere by its last part."""
    part, *below = wrong
    siblings = [str(name) for name in node] if isinstance(node, Mapping) else []
    if not above:
        siblings = sorted({*siblings, *groups})
    if near := nearest(part, siblings):
        return f"did you mean {'.'.join([*above, near, *below])!r}?"
    everywhere = dict(_leaves(values))
    if near := nearest(part, everywhere):
        return f"did you mean {everywhere[near]!r}?"
    return f"keys here: {', '.join(sorted(siblings))}" if siblings else f"{'.'.join(above)} is a value, not a group"


def _leaves(values: Keys, path: str = "") -> Iterator[tuple[str, str]]:
    """The last part and the full path of every key."""
    for name, value in values.items():
        full = f"{path}{name}"
        yield str(name), full
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{full}.")
