"""Compose configs as Hydra does, but before Hydra, to report all mistakes with helpful messages.

Hydra's errors do not name the nearest key or the allowed values. They come one at a time, and once for every rank.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fluxexp.cli.explain import GroupOptions, explain_overrides
from fluxexp.config import RunConfig, build, check
from fluxexp.errors import ConfigError, Problem

_PLUGINS = {"hydra/launcher": ("fluxexp", "basic"), "hydra/sweeper": ("basic", "optuna")}
_SEARCHER = "optuna"
_OPTUNA = "hydra_plugins.hydra_optuna_sweeper"
_EXPERIMENT_HINT = "see `python -m fluxexp --help`, or `--info defaults` for what was composed"


@dataclass(frozen=True, slots=True)
class CheckedCommand:
    """A command without mistakes."""

    config: RunConfig
    """Config of the first job."""
    is_search: bool


def check_command(
    directory: Path, config_name: str, overrides: Sequence[str], multirun: bool, *, will_run: bool = True
) -> CheckedCommand | None:
    """Check a command before Hydra runs it.

    In a sweep, each value of a swept key is checked with the first values of the other keys. A wrong
    combination of values, or a problem with files, is found later, when the points are planned: these points fail, and
    the other points run.

    Returns:
        the first job; None if `will_run` is False.

    Raises:
        ConfigError: the command is wrong.
    """
    with initialize_config_dir(version_base="1.3", config_dir=str(directory)):
        parsed = _parse(overrides)
        options = _group_options(parsed)
        explain_overrides(parsed, multirun, options, _base(config_name, parsed))
        choices = [list(_choices(override, options)) for override in parsed]
        _check_plugins({o.key_or_group: str(o.value()) for o in parsed if o.key_or_group in _PLUGINS})
        config, plugins = _compose(config_name, [values[0] for values in choices])
        _check_plugins(plugins)
        if not will_run:
            return None
        first = CheckedCommand(to_run_config(config), multirun and plugins["hydra/sweeper"] == _SEARCHER)
        if not multirun:
            check(first.config)
        if first.is_search and first.config.objective is None:
            raise ConfigError(
                Problem(
                    "objective",
                    "is not set",
                    hint="set it to what the search minimizes or maximizes: device_s_per_image or quality",
                )
            )
        for job in _other_jobs(parsed, choices):
            to_run_config(_compose(config_name, job)[0])
        for key, value in _other_values(parsed):
            changed = config.copy()
            OmegaConf.update(changed, key, value)
            to_run_config(changed)
    return first


def to_run_config(config: Any) -> RunConfig:
    """Build a RunConfig from a composed DictConfig.

    Raises:
        ConfigError: unknown keys, wrong types, values out of range, or interpolations that cannot be resolved.
    """
    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        raise ConfigError(Problem(str(error.full_key or "config"), _first_line(error))) from None
    assert isinstance(values, dict)
    return build(RunConfig, {str(key): value for key, value in values.items()})


def _check_plugins(plugins: Mapping[str, str]) -> None:
    """Refuse unsupported launchers and sweepers: with several ranks, each rank would start its own study or model."""
    problems = [
        Problem(group, "does not work with several ranks", plugins[group], f"allowed: {', '.join(allowed)}")
        for group, allowed in _PLUGINS.items()
        if plugins.get(group, allowed[0]) not in allowed
    ]
    if plugins.get("hydra/sweeper") == _SEARCHER:
        if importlib.util.find_spec(_OPTUNA) is None:
            problems.append(Problem("hydra/sweeper", "is not installed", _SEARCHER, "pip install 'fluxexp[search]'"))
        if plugins.get("hydra/launcher") == "basic":
            hint = "remove hydra/launcher"
            problems.append(
                Problem("hydra/launcher", "does not return the objective that a search needs", "basic", hint)
            )
    if problems:
        raise ConfigError(problems)


def without_hydra(config: Any) -> Any:
    """Return a copy of a config without Hydra's own part, as Hydra passes it to a program."""
    config = config.copy()
    with flag_override(config, ["readonly", "struct"], False):
        del config["hydra"]
    return config


class Composer:
    """Composes the jobs of a sweep. Jobs with the same config files share one composition, which is much faster."""

    def __init__(self) -> None:
        self._bases: dict[tuple[str, ...], Any] = {}

    def __call__(self, overrides: Sequence[str], compose_job: Callable[[], Any]) -> Any:
        """Return the config of the job with `overrides`, without Hydra's own part. `compose_job` uses Hydra for it."""
        parsed = [o for o in _parse(overrides) if not o.key_or_group.startswith("hydra.")]
        # Values of existing keys. Hydra handles overrides that add or delete keys or choose files.
        values = [o for o in parsed if "." in o.key_or_group and not (o.is_add() or o.is_force_add() or o.is_delete())]
        keys = tuple([o.key_or_group for o in values] + [str(o.input_line) for o in parsed if o not in values])
        if keys not in self._bases:
            self._bases[keys] = without_hydra(compose_job())
        config = self._bases[keys].copy()
        for override in values:
            OmegaConf.update(config, override.key_or_group, override.value())
        return config


def _parse(overrides: Sequence[str]) -> list[Override]:
    parser = OverridesParser.create()
    parsed, problems = [], []
    for text in overrides:
        try:
            parsed.append(parser.parse_override(text))
        except HydraException:
            hint = "write KEY=VALUE; quote values with characters other than letters, digits and ._-/: KEY='\"a, b\"'"
            problems.append(Problem(text, "cannot be read as an override", hint=hint))
    if problems:
        raise ConfigError(problems)
    return parsed


def _group_options(overrides: Sequence[Override]) -> GroupOptions:
    """Return a function that lists the files of a group, also those in `hydra.searchpath`.

    Hydra's loader does not know the search path yet.
    """
    loader = GlobalHydra.instance().config_loader()
    own = [
        Path(str(place).removeprefix("file://"))
        for override in overrides
        if override.key_or_group == "hydra.searchpath" and isinstance(places := override.value(), list)
        for place in places
    ]

    @cache
    def options(group: str) -> list[str]:
        mine = [file.stem for place in own for file in (place / group).glob("*.yaml")]
        return sorted({*loader.get_group_options(group), *mine})

    return options


def _base(config_name: str, overrides: Sequence[Override]) -> Any:
    """Return a function that composes the config of the chosen group files. Its keys are the valid keys."""
    options = _group_options(overrides)
    chosen = [
        next(_choices(override, options))
        for override in overrides
        if override.key_or_group == "hydra.searchpath" or (options(override.key_or_group) and not override.is_delete())
    ]

    def make() -> Any:
        try:
            return compose(config_name, overrides=chosen)
        except (HydraException, OmegaConfBaseException, YAMLError):
            return compose(config_name)  # a wrong choice is explained by `explain_overrides`

    return make


def _other_jobs(overrides: Sequence[Override], choices: Sequence[list[str]]) -> Iterator[list[str]]:
    """Yield the overrides of the first job, with one swept group set to another file. Such a job must be composed."""
    first = [options[0] for options in choices]
    for position, (override, options) in enumerate(zip(overrides, choices, strict=True)):
        if "." not in override.key_or_group:
            for option in options[1:]:
                yield [*first[:position], option, *first[position + 1 :]]


def _other_values(overrides: Sequence[Override]) -> Iterator[tuple[str, Any]]:
    """Yield each further value of each swept key. They are set without a composition, as a sweep can have thousands."""
    for override in overrides:
        if "." in override.key_or_group and _is_swept(override):
            for value in islice(override.sweep_iterator(), 1, None):
                yield override.key_or_group, value


def _is_swept(override: Override) -> bool:
    """Whether the values are known before the sweep. Those of a search are not."""
    return override.is_choice_sweep() or (override.is_range_sweep() and override.is_discrete_sweep())


def _choices(override: Override, options: GroupOptions) -> Iterator[str]:
    """Return one override for each value of `override`; only itself if the values are not known before the sweep."""
    value = override.value()
    key = override.get_key_element()
    if isinstance(value, Glob):
        names = value.filter(options(override.key_or_group))
        if not names:
            files = ", ".join(options(override.key_or_group))
            raise ConfigError(
                Problem(key, "does not match a file of the group", str(override.value()), f"files: {files}")
            )
        return (f"{key}={name}" for name in names)
    if override.is_interval_sweep():
        return iter([f"{key}={value.start}"])  # type: ignore[union-attr]
    if _is_swept(override):
        return (f"{key}={choice}" for choice in override.sweep_string_iterator())
    return iter([str(override.input_line)])


def _compose(config_name: str, overrides: list[str]) -> tuple[Any, Mapping[str, str]]:
    """Compose a config. Returns it, and the launcher and sweeper that the command or a file chose."""
    try:
        config = compose(config_name, overrides=overrides, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(Problem("config", _first_line(error), hint=_EXPERIMENT_HINT)) from None
    chosen = config.hydra.runtime.choices
    return without_hydra(config), {group: str(chosen.get(group)) for group in _PLUGINS}


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
