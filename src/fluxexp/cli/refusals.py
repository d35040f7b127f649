"""What Hydra could compose, but fluxexp cannot run."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from hydra.core.override_parser.types import Override

from fluxexp.cli.explain import ADDED_GROUPS
from fluxexp.cli.location import MAIN_CONFIG
from fluxexp.config import RunConfig
from fluxexp.errors import ConfigError, Problem

PLUGINS = {"hydra/launcher": ("fluxexp", "basic"), "hydra/sweeper": ("basic", "optuna")}
"""The launchers and the sweepers that work here. The first one is the default."""
SEARCHER = "optuna"
_OPTUNA = "hydra_plugins.hydra_optuna_sweeper"


def refuse_packages(config: Any, overrides: Sequence[Override]) -> None:
    """Refuse experiments that would set keys below `experiment`, where nothing reads them."""
    problems = []
    for group in ADDED_GROUPS:
        names = [o.get_value_string() for o in overrides if o.key_or_group.split("/")[0] == group]
        if group in config:
            hint = "write `# @package _global_` as the first line of the file"
            problems.append(Problem(f"+{group}", "puts its keys into a group of its own", " ".join(names), hint))
    if problems:
        raise ConfigError(problems)


def refuse_missing_groups(config_name: str, config: Any) -> None:
    """Refuse a primary config of the user without groups that a run needs."""
    missing = [item.name for item in fields(RunConfig) if item.name not in config]
    if missing and config_name != MAIN_CONFIG:
        hint = "begin its defaults list with `- config`, which has them all, and files with `- override model: X`"
        raise ConfigError(Problem("--config-name", f"does not contain {', '.join(missing)}", config_name, hint))


def check_plugins(plugins: Mapping[str, str]) -> None:
    """Refuse other launchers and sweepers: on several ranks, each rank would start its own study or model."""
    problems = [
        Problem(group, "does not work with several ranks", plugins[group], _plugin_hint(plugins[group], allowed))
        for group, allowed in PLUGINS.items()
        if plugins.get(group, allowed[0]) not in allowed
    ]
    if plugins.get("hydra/sweeper") == SEARCHER:
        if importlib.util.find_spec(_OPTUNA) is None:
            problems.append(Problem("hydra/sweeper", "is not installed", SEARCHER, "pip install 'fluxexp[search]'"))
        if plugins.get("hydra/launcher") == "basic":
            hint = "remove hydra/launcher"
            problems.append(
                Problem("hydra/launcher", "does not return the objective that a search needs", "basic", hint)
            )
    if problems:
        raise ConfigError(problems)


def _plugin_hint(plugin: str, allowed: Sequence[str]) -> str:
    hint = f"allowed: {', '.join(allowed)}"
    if "slurm" in plugin or "submitit" in plugin:  # it would start a job, and load the model, for each point
        return f"{hint}; `python -m fluxexp.submit -- -m ...` submits the whole sweep as one job (docs/nodes.md)"
    return hint


def plugins_of(config: Any) -> Mapping[str, str]:
    """The launcher and the sweeper that the command or a file chose."""
    return {group: str(config.hydra.runtime.choices.get(group)) for group in PLUGINS}
