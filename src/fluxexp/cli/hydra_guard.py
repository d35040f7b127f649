"""A config is data: what would make Hydra run code, or copy a secret into results, is refused (SECURITY.md).

Hydra calls what its own config names: callbacks, launchers, sweepers, and classes of loggers. So each composed config
is compared with the one that Hydra and fluxexp ship, before anything uses it. A short list of keys may differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import create_config_search_path
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from fluxexp.cli.location import MAIN_CONFIG
from fluxexp.errors import ConfigError, Problem

_FREE = re.compile(
    # What Hydra itself fills in, and texts that it only prints.
    r"(runtime|overrides|help|hydra_help)\..+|mode|verbose|searchpath|job\.(config_name|override_dirname|num|id)"
    r"|job\.config\.override_dirname\..+"
    # Directories, which have an error of their own (hydra_app.py).
    r"|(run|sweep)\.dir|sweep\.subdir|output_subdir|job\.chdir"
    # The sweep.
    r"|sweeper\.(params|search_space)(\..+)?|sweeper\.sampler\.[a-z]\w*"
    r"|sweeper\.(max_batch_size|direction|n_trials|n_jobs|study_name|storage|max_failure_rate)"
)
"""The keys of Hydra that a config may change."""
_LEVEL = re.compile(r"(hydra|job)_logging\.(root|loggers\.[^.]+|handlers\.[^.]+)\.level")
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_CALLING = ("_target_", "_args_", "_partial_", "_convert_", "_recursive_")
"""Keys with which Hydra calls a function, at any depth."""
_CODE_HINT = "a config is data, and may change only few keys of Hydra (SECURITY.md); remove it"
_OWN_PACKAGES = re.compile(r"(pkg://)?(hydra\.conf|hydra_plugins(\.\w+)*)")
_MAY_READ = re.compile(
    r"HOME|USER|LOGNAME|HOSTNAME|PWD|TMPDIR|LANG|TZ|RANK|LOCAL_RANK|WORLD_SIZE|CUDA_VISIBLE_DEVICES"
    r"|(FLUXEXP|XDG|SLURM)_\w+|(\w+_)?(DIR|DIRECTORY|PATH|ROOT|FOLDER|HOME)"
)
_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASS|CREDENTIAL|AUTH|COOKIE|JWT|PRIVATE|SIGNATURE|CERT")


class GuardedLoader(ConfigLoaderImpl):
    """Hydra's loader. Every config that Hydra composes passes the comparison, also those inside of a sweep."""

    def __init__(self, search_path: Any, directory: Path) -> None:
        guard_sources()
        super().__init__(search_path)
        self._directory = directory

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Compose a config.

        Raises:
            ConfigError: it would run code.
        """
        config = super().load_configuration(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        refuse_code(config.hydra, self._directory)
        return config


def refuse_code(given: Any, directory: Path) -> None:
    """Refuse a config of Hydra that differs from what is shipped, other than in the keys that may differ.

    Args:
        given: the part `hydra` of a composed config.
        directory: fluxexp's configs.

    Raises:
        ConfigError: with a problem for each key.
    """
    chosen = OmegaConf.to_container(given.runtime.choices, resolve=False)
    assert isinstance(chosen, dict)
    files = {str(group): name for group, name in chosen.items() if str(group).startswith("hydra/")}
    shipped = _shipped(directory, tuple(sorted((group, str(name)) for group, name in files.items() if name)))
    values = OmegaConf.to_container(given, resolve=False)
    problems = [
        Problem(f"hydra.{key}", "differs from what comes with Hydra and fluxexp", _shown(value, key), _CODE_HINT)
        for key, value in _changes(values, shipped, "")
        if not _may_change(key, value)
    ]
    if not problems:
        problems = list(_calls(given, shipped))
    if problems:
        raise ConfigError(problems)


def guard_sources() -> None:
    """Make Hydra read no config from a Python package, which would import it, and few environment variables."""
    registry = SourcesRegistry.instance()
    registry.types[OwnPackages.scheme()] = OwnPackages
    OmegaConf.register_new_resolver("oc.env", _read_environment, replace=True)


def config_error_in(error: BaseException) -> ConfigError | None:
    """The ConfigError among the causes of an error, if there is one. OmegaConf wraps the errors of resolvers."""
    current: BaseException | None = error
    while current is not None and not isinstance(current, ConfigError):
        current = current.__cause__ or current.__context__
    return current


class OwnPackages(ImportlibResourcesConfigSource):
    """Configs inside of Python packages: only Hydra's and those of its plugins, which Hydra imports anyway."""

    def __init__(self, provider: str, path: str) -> None:
        if not _OWN_PACKAGES.fullmatch(path):
            hint = "name a folder: hydra.searchpath=[file:///path/to/folder]"
            raise ConfigError(Problem("hydra.searchpath", "would import a Python package", path, hint))
        super().__init__(provider, path)


def _read_environment(key: str, *default: Any) -> Any:
    """The resolver `oc.env`. The values of a config are written to results, so it must not read a secret."""
    if not _MAY_READ.fullmatch(key) or _SECRET.search(key):
        hint = f"write the value into the command (KEY=${key}), or export it as FLUXEXP_NAME; configs go into results"
        raise ConfigError(
            Problem(f"${{oc.env:{key}}}", "is not an environment variable that configs may read", hint=hint)
        )
    return oc.env(key, *default)


@cache
def _shipped(directory: Path, files: tuple[tuple[str, str], ...]) -> Mapping[str, Any]:
    """Hydra's config with these files of its groups, without any config of the user.

    Raises:
        ConfigError: one of the files comes neither with Hydra nor with fluxexp.
    """
    loader = ConfigLoaderImpl(create_config_search_path(str(directory)))
    for group, name in files:
        if name not in (allowed := loader.get_group_options(group)):
            hint = f"allowed: {', '.join(sorted(allowed)) or 'none'}"
            raise ConfigError(Problem(group, "does not come with Hydra or fluxexp", name, hint))
    overrides = [f"{group}={name}" for group, name in files]
    try:
        config = loader.load_configuration(MAIN_CONFIG, overrides, RunMode.RUN, from_shell=False)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(Problem("hydra", f"has groups that cannot be composed ({error})", overrides)) from None
    values = OmegaConf.to_container(config.hydra, resolve=False)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _changes(given: Any, shipped: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The dotted keys that differ, with their given values."""
    if isinstance(given, Mapping) and isinstance(shipped, Mapping):
        for key in [*given, *(key for key in shipped if key not in given)]:
            if key not in shipped or key not in given or given[key] != shipped[key]:
                yield from _changes(given.get(key), shipped.get(key), f"{path}.{key}".lstrip("."))
    elif given or shipped or type(given) is not type(shipped):
        inner = given.items() if isinstance(given, Mapping) and shipped is None else ()
        if inner and not _FREE.fullmatch(path):
            for key, value in inner:
                yield from _changes(value, None, f"{path}.{key}")
        else:
            yield path, given


def _may_change(key: str, value: Any) -> bool:
    if _LEVEL.fullmatch(key):
        return value in _LEVELS
    return _FREE.fullmatch(key) is not None and key.rpartition(".")[2] not in _CALLING


def _calls(given: Any, shipped: Mapping[str, Any]) -> Iterator[Problem]:
    """Problems with calls that stand in keys of the sweeper that may change, or that these keys refer to."""
    try:
        sweeper = OmegaConf.to_container(given.sweeper, resolve=True)
    except OmegaConfBaseException as error:
        if (found := config_error_in(error)) is not None:
            raise found from None
        yield Problem("hydra.sweeper", f"cannot be resolved ({error})".partition("\n")[0])
        return
    allowed = dict(_called(shipped.get("sweeper"), "hydra.sweeper"))
    for key, value in _called(sweeper, "hydra.sweeper"):
        if allowed.get(key) != value:
            yield Problem(key, "would call a function", _shown(value), _CODE_HINT)


def _called(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    parts: Iterator[tuple[Any, Any]] | enumerate[Any] = iter(())
    if isinstance(node, Mapping):
        parts = iter(node.items())
    elif isinstance(node, Sequence) and not isinstance(node, str):
        parts = enumerate(node)
    for key, value in parts:
        if key in _CALLING:
            yield f"{path}.{key}", value
        yield from _called(value, f"{path}.{key}")


def _shown(value: Any, key: str = "") -> Any:
    if key.startswith("job.env_set"):
        return None  # Hydra copies variables there (`hydra.job.env_copy`), and one can be a secret
    text = str(value)
    return value if len(text) <= 200 else f"{text[:200]}..."
