"""Hydra with fluxexp's configs and the user's: it composes configs, and says clearly which file or key is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch
from warnings import catch_warnings, filterwarnings

from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from hydra.initialize import get_gh_backup, restore_gh_from_backup
from hydra.plugins.sweeper import Sweeper
from hydra.types import RunMode
from omegaconf import OmegaConf, flag_override

from fluxexp.cli.composition_errors import COMPOSITION_ERRORS, MISSING_FOLDER, explain_composition
from fluxexp.cli.explain import GroupOptions
from fluxexp.cli.hydra_guard import GuardedLoader, config_error_in
from fluxexp.cli.location import Place
from fluxexp.errors import ConfigError, Problem

_DIRECTORIES = {
    "run.dir": (".", "outputs/${now:%Y-%m-%d}/${now:%H-%M-%S}"),
    "sweep.dir": ("multirun", "multirun/${now:%Y-%m-%d}/${now:%H-%M-%S}"),
    "sweep.subdir": (".", "${hydra.job.num}"),
    "output_subdir": (None, ".hydra"),
    "job.chdir": (None, False),
}
"""Keys of Hydra that name directories, with the values in conf/config.yaml and in Hydra itself."""
_DIRECTORY_HINT = "remove it, and set output.dir=DIR: the parent of the directories of runs and sweeps"
_RENAME = "give the file another name and choose it by that name"
_OWN_SETTINGS = (
    "hydra/launcher=fluxexp",
    "hydra/hydra_logging=none",
    "hydra/job_logging=none",
    "hydra.job.name=fluxexp",
    *(f"hydra.{key}={'null' if own is None else own}" for key, (own, _) in _DIRECTORIES.items()),
)
"""What conf/config.yaml says to Hydra, for a primary config that does not contain it."""
_LAUNCHER = "hydra_plugins.fluxexp_pool"
"""Module of fluxexp's launcher."""
_VERBOSE_SETTINGS = ("hydra/hydra_logging=default", "hydra/job_logging=stdout")
"""Without loggers, `hydra.verbose` would do nothing."""


Compose = Callable[[Sequence[str]], Any]
"""Composes the config of a job with these overrides, Hydra's own part included."""


@dataclass(frozen=True, slots=True)
class HydraApp:
    """Hydra, ready to compose one primary config."""

    hydra: Hydra
    place: Place
    _composed: dict[tuple[RunMode, tuple[str, ...]], Any] = field(default_factory=dict)
    _repositories: dict[tuple[str, ...], Any] = field(default_factory=dict)
    """Where config files are looked up, by the overrides of `hydra.searchpath`."""

    def compose(self, overrides: Sequence[str], mode: RunMode = RunMode.RUN) -> Any:
        """Compose the config, with Hydra's own part. The same overrides are composed once; do not change the result.

        Raises:
            ConfigError: a file or an override is wrong.
        """
        key = (mode, tuple(overrides))
        if key not in self._composed:
            with self._explained():
                self._composed[key] = self.hydra.compose_config(
                    config_name=self.place.config_name,
                    overrides=list(overrides),
                    run_mode=mode,
                    from_shell=False,
                    with_log_configuration=False,
                )
        return self._composed[key]

    def group_options(self, overrides: Sequence[Override]) -> GroupOptions:
        """Return a function that lists the files of a group, also those in `hydra.searchpath`.

        Raises (the function):
            ConfigError: a folder of the search path does not exist, or the primary config is not valid.
        """
        paths = [str(override.input_line) for override in overrides if override.key_or_group == "hydra.searchpath"]

        @cache
        def options(group: str) -> list[str]:
            return sorted(self._configs(group, paths))

        return options

    def files_with(self, group: str, key: str) -> list[str]:
        """The files of a group that have a key themselves, and not only from the files in their defaults list."""
        load = self.hydra.config_loader.repository.load_config  # type: ignore[attr-defined]
        try:
            return [name for name in self._configs(group) if key in load(f"{group}/{name}").config]
        except (ConfigError, *COMPOSITION_ERRORS):
            return []  # another file of the group is damaged, which is no problem of this command

    def _configs(self, group: str, paths: Sequence[str] = ()) -> list[str]:
        key = tuple(paths)
        with self._explained():
            if key not in self._repositories:
                # Hydra's `get_group_options` makes a repository for each group, which reads the primary config: 15 ms.
                make = self.hydra.config_loader._parse_overrides_and_create_caching_repo  # type: ignore[attr-defined]
                _, self._repositories[key] = make(self.place.config_name, list(paths))
            return list(self._repositories[key].get_group_options(group, ObjectType.CONFIG))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn Hydra's errors, and its warning about a missing folder, into a ConfigError."""
        try:
            with catch_warnings():
                filterwarnings("error", message=MISSING_FOLDER, category=UserWarning)
                yield
        except COMPOSITION_ERRORS as error:
            if (refused := config_error_in(error)) is not None:
                raise refused from None
            raise ConfigError(explain_composition(error, self.place, self._configs)) from None


@contextmanager
def open_hydra(place: Place) -> Iterator[HydraApp]:
    """Initialize Hydra with fluxexp's configs, and after them the user's, as Hydra does.

    Raises:
        ConfigError: a file of the user has the name of one of fluxexp, so Hydra would never read it.
    """
    version.setbase("1.3")
    search_path = create_config_search_path(str(place.directory))
    if place.config_dir is not None:
        _refuse_hidden_files(place.directory, place.config_dir)
        schema = SearchPathQuery(provider="schema")
        search_path.prepend(provider="command-line", path=f"file://{place.config_dir}", anchor=schema)
    backup = get_gh_backup()
    GlobalHydra.instance().clear()
    try:
        hydra = Hydra("fluxexp", GuardedLoader(search_path, place.directory))
        GlobalHydra.instance().initialize(hydra)
        yield HydraApp(hydra, place)
    finally:
        restore_gh_from_backup(backup)


@contextmanager
def composed_once() -> Iterator[None]:
    """Keep Hydra's sweepers from composing each job only to see whether it can be composed.

    fluxexp's launcher composes all jobs anyway, much faster (`sweep_jobs.py`), and reports those that cannot be
    composed. For 2,000 jobs, Hydra would need minutes.
    """
    validate = Sweeper.validate_batch_is_legal

    def validate_for_others(self: Any, batch: Sequence[Sequence[str]]) -> None:
        if type(self.launcher).__module__ != _LAUNCHER:
            validate(self, batch)

    with patch.object(Sweeper, "validate_batch_is_legal", validate_for_others):
        yield


def settings_for(config: Any, overrides: Sequence[Override]) -> list[str]:
    """Overrides of Hydra's own config that this command needs before all others.

    Args:
        config: as composed without them, with Hydra's part.
        overrides: of the command line.

    Raises:
        ConfigError: a key of Hydra is set that names a directory. fluxexp names directories itself.
    """
    problems = [
        Problem(f"hydra.{key}", "has no effect, because fluxexp names directories itself", value, _DIRECTORY_HINT)
        for key, allowed in _DIRECTORIES.items()
        if (value := _unresolved(config.hydra, key)) not in allowed
    ]
    if problems:
        raise ConfigError(problems)
    is_own = _unresolved(config.hydra, "run.dir") == _DIRECTORIES["run.dir"][0]
    wanted = [] if is_own else list(_OWN_SETTINGS)
    if config.hydra.verbose:
        wanted += _VERBOSE_SETTINGS
    typed = {override.key_or_group for override in overrides}
    return [setting for setting in wanted if setting.partition("=")[0] not in typed]


def without_hydra(config: Any) -> Any:
    """Return a copy of a config without Hydra's own part, as Hydra passes it to a program."""
    config = config.copy()
    with flag_override(config, ["readonly", "struct"], False):
        del config["hydra"]
    return config


def sweeper_params(config: Any) -> Mapping[str, Any]:
    """The sweep in a composed config: `hydra.sweeper.params`."""
    params = OmegaConf.select(config, "hydra.sweeper.params")
    values = OmegaConf.to_container(params, resolve=True) if params else {}
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _unresolved(node: Any, key: str) -> Any:
    """A value without its interpolations resolved."""
    for part in key.split("."):
        node = node._get_node(part) if OmegaConf.is_config(node) else None
    return None if node is None else node._value()


def _refuse_hidden_files(directory: Path, config_dir: Path) -> None:
    own = {file.relative_to(directory) for file in directory.rglob("*.yaml")}
    problems = [
        Problem(str(config_dir / name), "would not be read, because fluxexp has a config of this name", hint=_RENAME)
        for name in sorted(own)
        if (config_dir / name).is_file() and (config_dir / name).read_bytes() != (directory / name).read_bytes()
    ]
    if problems:
        raise ConfigError(problems)
