"""Explain wrong overrides: unknown group files, unknown keys, and several values outside of a sweep."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import Glob, Override, Quote, QuotedString

from fluxexp.cli.suggestions import Keys, OtherFiles, suggest
from fluxexp.config.build import unknown_name
from fluxexp.errors import ConfigError, Problem

GroupOptions = Callable[[str], Sequence[str]]
ADDED_GROUPS = ("experiment",)
"""Groups that are not in the defaults list of conf/config.yaml."""


def explain_choices(overrides: Sequence[Override], options: GroupOptions) -> None:
    """Raise ConfigError with a problem for each override that chooses files wrongly.

    Args:
        overrides: of the command line.
        options: gives the names of the files of a group; empty for a name that is not a group.
    """
    problems = [problem for override in overrides for problem in _check_choice(override, options)]
    if problems:
        raise ConfigError(problems)


def explain_values(
    overrides: Sequence[Override], is_sweep: bool, options: GroupOptions, values: Keys, other_files: OtherFiles
) -> None:
    """Raise ConfigError with a problem for each override that has several values or sets a key that does not exist.

    Args:
        overrides: of the command line.
        is_sweep: whether several values are allowed.
        options: see `explain_choices`.
        values: the config of the chosen group files. Its keys are the valid ones.
        other_files: finds files of a group that have a key.
    """
    problems = [] if is_sweep else [_several_values(o) for o in overrides if o.is_sweep_override()]
    if problems:
        raise ConfigError(problems)
    groups = [name for name in values if options(name)] + list(ADDED_GROUPS)
    problems = [
        problem
        for override in overrides
        if _sets_a_key(override, options)
        for problem in (list(_check_subgroup(override, options)) or _check_key(override, values, groups, other_files))
    ]
    if problems:
        raise ConfigError(problems)


def quoted(key: str, value: str) -> str:
    """The override that sets `key` to the text `value`, in Hydra's grammar."""
    return f"{key}={QuotedString(value, Quote.double).with_quotes()}"


def _sets_a_key(override: Override, options: GroupOptions) -> bool:
    key = override.key_or_group
    return key.split(".")[0].split("/")[0] != "hydra" and not options(key)


def _several_values(override: Override) -> Problem:
    key, given = override.get_key_element(), override.get_value_string()
    hint = f"sweep with `-m ... {override.input_line}`"
    if not {'"', "'"} & set(given):
        hint += f", or quote it if it is one value: {shlex.quote(quoted(key, given))}"
    return Problem(override.key_or_group, "has several values, but the command is not a sweep", given, hint)


def _check_choice(override: Override, options: GroupOptions) -> Iterator[Problem]:
    key = override.key_or_group
    files = options(key)
    if not files or override.is_delete() or key.split("/")[0] == "hydra":
        return
    if key in ADDED_GROUPS and not override.is_add():
        yield Problem(key, "is added with a plus", override.get_value_string(), f"write +{override.input_line}")
        return
    if key not in ADDED_GROUPS and override.is_add():
        plain = f"{key}={override.get_value_string()}"
        yield Problem(key, "must be chosen without a plus sign", override.get_value_string(), f"write {plain}")
        return
    for value in _values(override):
        if value not in files and value != "null":
            yield Problem(key, "is not a file of this group", value, unknown_name(value, files, "allowed"))


def _values(override: Override) -> list[str]:
    value = override.value()
    if isinstance(value, Glob):
        return []  # a pattern matches only existing files
    if override.is_choice_sweep():
        return [str(Override._convert_value(item)) for item in override.sweep_iterator()]
    if override.is_sweep_override():
        return []
    return [str(item) for item in value] if isinstance(value, list) else ["null" if value is None else str(value)]


def _check_subgroup(override: Override, options: GroupOptions) -> Iterator[Problem]:
    """Find subgroups that are written with a dot: a slash chooses a subgroup, a dot sets a key."""
    key = override.key_or_group
    group = key.replace(".", "/")
    if "." in key and not override.is_delete() and set(_values(override)) & set(options(group)):
        given = override.get_value_string()
        yield Problem(key, "is a config group, which needs a slash", given, f"write {group}={given}")


def _check_key(override: Override, values: Keys, groups: Sequence[str], other_files: OtherFiles) -> Iterator[Problem]:
    node: Any = values
    parts = override.key_or_group.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(node, Mapping) or part not in node:
            given = None if override.is_delete() else override.get_value_string()
            hint = suggest(parts, depth, values, groups, other_files)
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
