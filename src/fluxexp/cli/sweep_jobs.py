"""The jobs of a sweep: composed quickly, and multiplied by the sweep that an experiment in a swept group contains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from fluxexp.cli.explain import GroupOptions
from fluxexp.cli.hydra_app import Compose, sweeper_params, without_hydra
from fluxexp.cli.overrides import merged, params_as_overrides, parse_overrides


@dataclass(frozen=True, slots=True)
class _Base:
    """What jobs with the same config files share."""

    config: Any
    params: Mapping[str, Any]


class Composer:
    """Composes the jobs of a sweep. Jobs with the same config files share one composition, which is much faster.

    Args:
        compose_job: uses Hydra to compose a job.
        options: gives the names of the files of a group.
        params: the sweep that Hydra's sweeper already knows. A job's config can contain another one.
    """

    def __init__(self, compose_job: Compose, options: GroupOptions, params: Mapping[str, Any]) -> None:
        self._compose_job = compose_job
        self._options = options
        self._params = params
        self._bases: dict[tuple[str, ...], _Base] = {}

    def config(self, overrides: Sequence[str]) -> Any:
        """Return the config of the job with `overrides`, without Hydra's own part.

        Raises:
            ConfigError: it cannot be composed.
        """
        parsed = self._parsed(overrides)
        config = self._base(overrides, parsed).config.copy()
        for override in _values(parsed):
            OmegaConf.update(config, override.key_or_group, override.value())
        return config

    def jobs(self, overrides: Sequence[str]) -> Iterator[list[str]]:
        """Yield the overrides of the points of a job: of this one, or of each point of the sweep in its experiment.

        Raises:
            ConfigError: it cannot be composed.
        """
        parsed = self._parsed(overrides)
        params = inner_params(self._base(overrides, parsed).params, self._params, parsed)
        inner = params_as_overrides(params, self._options)
        if not inner:
            yield list(overrides)
            return
        (points,) = BasicSweeper.split_arguments(inner, None)
        for point in points:
            yield [*overrides, *point]

    def _parsed(self, overrides: Sequence[str]) -> list[Override]:
        return [o for o in parse_overrides(overrides, self._options) if not o.key_or_group.startswith("hydra.")]

    def _base(self, overrides: Sequence[str], parsed: Sequence[Override]) -> _Base:
        values = _values(parsed)
        keys = tuple([o.key_or_group for o in values] + [str(o.input_line) for o in parsed if o not in values])
        if keys not in self._bases:
            config = self._compose_job(overrides)
            self._bases[keys] = _Base(without_hydra(config), sweeper_params(config))
        return self._bases[keys]


def inner_params(
    params: Mapping[str, Any], outer: Mapping[str, Any], overrides: Sequence[Override]
) -> Mapping[str, Any]:
    """The part of a job's `hydra.sweeper.params` that the sweep of the command does not know.

    Args:
        params: of the job's config.
        outer: of the config of the sweep.
        overrides: of the job; they count more.
    """
    typed = {override.key_or_group for override in merged(overrides)}
    return {
        key: value
        for key, value in params.items()
        if outer.get(key) != value and key.lstrip("+~").partition("@")[0] not in typed
    }


def _values(overrides: Sequence[Override]) -> list[Override]:
    """Values of existing keys. Hydra handles overrides that add or delete keys or choose files."""
    return [o for o in overrides if "." in o.key_or_group and not (o.is_add() or o.is_force_add() or o.is_delete())]
