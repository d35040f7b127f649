"""Compose configs as Hydra does, but before Hydra, to report all mistakes with helpful messages.

Hydra's errors do not name the nearest key or the allowed values. They come one at a time, and once for every rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fluxexp.cli.explain import ADDED_GROUPS, GroupOptions, explain_choices, explain_values
from fluxexp.cli.hydra_app import HydraApp, open_hydra, settings_for, sweeper_params, without_hydra
from fluxexp.cli.hydra_guard import config_error_in
from fluxexp.cli.location import Place
from fluxexp.cli.overrides import choices, merged, other_values, params_as_overrides, parse_overrides
from fluxexp.cli.refusals import (
    PLUGINS,
    SEARCHER,
    check_plugins,
    plugins_of,
    refuse_missing_groups,
    refuse_packages,
)
from fluxexp.cli.sweep_jobs import inner_params
from fluxexp.config import RunConfig, build, check
from fluxexp.errors import ConfigError, Problem


@dataclass(frozen=True, slots=True)
class CheckedCommand:
    """A command without mistakes."""

    config: RunConfig
    """Config of the first job."""
    overrides: Sequence[str]
    """For Hydra: what the user typed, with text quoted, and what this command needs to say to Hydra itself."""
    params: Mapping[str, Any]
    """The sweep in the config files."""
    is_sweep: bool
    is_search: bool
    is_pool: bool
    """Whether it is a sweep whose points one session works on, and not one session after the other."""


def check_command(
    directory: Path,
    config_name: str,
    overrides: Sequence[str],
    multirun: bool | None,
    *,
    config_dir: Path | None = None,
    has_files: bool = True,
) -> CheckedCommand:
    """Check a command before Hydra runs it.

    In a sweep, each value of a swept key is checked with the first values of the other keys. A wrong
    combination of values, or a problem with files, is found later, when the points are planned: these points fail, and
    the other points run.

    Args:
        directory: fluxexp's configs.
        config_name: of the primary config.
        overrides: as typed.
        multirun: whether the command is a sweep. None: it is one if the config has `hydra.mode: MULTIRUN`, or a sweep
            in `hydra.sweeper.params` and no mode.
        config_dir: absolute path of the user's configs.
        has_files: whether the files that the config names are on this machine, so that they are checked.

    Returns:
        the command with its first job.

    Raises:
        ConfigError: the command is wrong.
    """
    with open_hydra(Place(directory, config_name, config_dir)) as app:
        return _Check.of(app, overrides, multirun).whole(has_files=has_files)


def check_shown(place: Place, overrides: Sequence[str]) -> list[str]:
    """Check a command that shows something, such as `--cfg`. Returns the overrides for Hydra.

    Raises:
        ConfigError: the command is wrong. Values are not checked.
    """
    with open_hydra(place) as app:
        shown = _Check.of(app, overrides, multirun=False)
        shown.compose([next(choices(override, shown.options)) for override in shown.parsed])
        return shown.hydra_overrides()


def to_run_config(config: Any) -> RunConfig:
    """Build a RunConfig from a composed DictConfig.

    Raises:
        ConfigError: unknown keys, wrong types, values out of range, or interpolations that cannot be resolved.
    """
    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        if (refused := config_error_in(error)) is not None:
            raise refused from None
        raise ConfigError(Problem(str(error.full_key or "config"), str(error).strip().splitlines()[0])) from None
    assert isinstance(values, dict)
    return build(RunConfig, {str(key): value for key, value in values.items()})


@dataclass(frozen=True, slots=True)
class _Check:
    """A parsed command whose files exist and whose keys are known."""

    app: HydraApp
    options: GroupOptions
    parsed: Sequence[Override]
    """Of the command line."""
    swept: Sequence[Override]
    """Of the command line, and of the sweep in config files."""
    settings: Sequence[str]
    params: Mapping[str, Any]
    sweeper: str
    is_sweep: bool

    @classmethod
    def of(cls, app: HydraApp, overrides: Sequence[str], multirun: bool | None) -> _Check:
        options = app.group_options(parse_overrides(overrides))
        parsed = parse_overrides(overrides, options)
        explain_choices(parsed, options)
        check_plugins({o.key_or_group: str(o.value()) for o in parsed if o.key_or_group in PLUGINS})
        files = [o for o in parsed if o.is_hydra_override() or (options(o.key_or_group) and not o.is_delete())]
        base = app.compose([next(choices(override, options)) for override in files])
        settings = settings_for(base, parsed)
        # Hydra composes the config of a sweep without the files of swept groups.
        plan = app.compose(_texts(files), RunMode.MULTIRUN) if _any_swept(files) else base
        params, mode = sweeper_params(plan), plan.hydra.mode
        is_sweep = multirun if multirun is not None else mode == RunMode.MULTIRUN or (mode is None and bool(params))
        refuse_packages(base, parsed)
        from_files = params_as_overrides(params, options) if is_sweep else []
        swept = merged(from_files, parsed)
        values = OmegaConf.to_container(without_hydra(base), resolve=False)
        assert isinstance(values, dict)
        known = {str(key): value for key, value in values.items()}
        explain_values(swept, is_sweep, options, known, app.files_with)
        sweeper = plugins_of(plan)["hydra/sweeper"]
        return cls(app, options, parsed, swept, settings, params, sweeper, is_sweep)

    def hydra_overrides(self) -> list[str]:
        """The overrides for Hydra. Those of the command line come last and count most."""
        typed = {override.get_key_element() for override in self.parsed}
        sweep = [o for o in self.swept if o.get_key_element() not in typed]
        return [*self.settings, *_texts(sweep), *_texts(self.parsed)]

    def compose(self, overrides: Sequence[str]) -> Any:
        """Compose a job, with Hydra's part, and check its launcher and sweeper."""
        config = self.app.compose([*self.settings, *overrides])
        check_plugins(plugins_of(config))
        return config

    def whole(self, *, has_files: bool) -> CheckedCommand:
        """Check all values."""
        values = [list(choices(override, self.options)) for override in self.swept]
        composed = self.compose([texts[0] for texts in values])
        config = without_hydra(composed)
        refuse_missing_groups(self.app.place.config_name, config)
        is_search = self.is_sweep and self.sweeper == SEARCHER
        is_pool = self.is_sweep and plugins_of(composed)["hydra/launcher"] == PLUGINS["hydra/launcher"][0]
        first = CheckedCommand(
            config=to_run_config(config),
            overrides=self.hydra_overrides(),
            params=self.params,
            is_sweep=self.is_sweep,
            is_search=is_search,
            is_pool=is_pool,
        )
        if has_files and not self.is_sweep:
            check(first.config)
        if is_search and first.config.objective is None:
            hint = "set it to what the search minimizes or maximizes: device_s_per_image or quality"
            raise ConfigError(Problem("objective", "is not set", hint=hint))
        self._check_inner(composed)
        for job in _other_jobs(self.swept, values):
            other = self.compose(job)
            to_run_config(without_hydra(other))
            self._check_inner(other)
        self._check_values(config, self.swept)
        return first

    def _check_values(self, config: Any, overrides: Sequence[Override]) -> None:
        for key, value in other_values(overrides):
            changed = config.copy()
            OmegaConf.update(changed, key, value)
            to_run_config(changed)

    def _check_inner(self, composed: Any) -> None:
        """Check the sweep that the experiment of one job has, if experiments are swept."""
        if not self.is_sweep or not _any_swept([o for o in self.parsed if self.options(o.key_or_group)]):
            return
        plugins = plugins_of(composed)
        chosen = str(composed.hydra.runtime.choices.get(ADDED_GROUPS[0]))
        inner = inner_params(sweeper_params(composed), self.params, self.swept)
        if inner and plugins["hydra/launcher"] != PLUGINS["hydra/launcher"][0]:
            what = f"does not run the sweep inside experiment={chosen}"
            raise ConfigError(Problem("hydra/launcher", what, plugins["hydra/launcher"], "remove hydra/launcher"))
        if plugins["hydra/sweeper"] != self.sweeper:
            what = f"cannot be one of several experiments, because it chooses hydra/sweeper={plugins['hydra/sweeper']}"
            raise ConfigError(Problem(ADDED_GROUPS[0], what, chosen, "start it in a command of its own"))
        parsed = params_as_overrides(inner, self.options)
        values = OmegaConf.to_container(without_hydra(composed), resolve=False)
        assert isinstance(values, dict)
        known = {str(key): value for key, value in values.items()}
        explain_values(parsed, True, self.options, known, self.app.files_with)
        self._check_values(without_hydra(composed), parsed)


def _any_swept(overrides: Sequence[Override]) -> bool:
    return any(override.is_sweep_override() for override in overrides)


def _other_jobs(overrides: Sequence[Override], values: Sequence[list[str]]) -> Iterator[list[str]]:
    """Yield the overrides of the first job with each other file of each swept group. They must be composed."""
    first = [texts[0] for texts in values]
    for position, (override, texts) in enumerate(zip(overrides, values, strict=True)):
        if "." not in override.key_or_group:
            for text in texts[1:]:
                yield [*first[:position], text, *first[position + 1 :]]


def _texts(overrides: Sequence[Override]) -> list[str]:
    return [str(override.input_line) for override in overrides]
