"""Engines: what starts the processes that make images, and gives them their tasks. Only `engine=ray` imports Ray."""

from __future__ import annotations

from fluxexp.address import Address
from fluxexp.config.schema import RayEngineConfig, RunConfig
from fluxexp.experiment.workforce import LaunchedRanks, Workforce
from fluxexp.parallel.topology import join


def workforce_of(config: RunConfig, root: Address) -> Workforce:
    """The workforce of the engine that `config` names. A process of a launcher joins the others.

    Args:
        config: of the run, or of a run of the sweep.
        root: parent of the runs' directories, unless `output.dir` is set.

    Raises:
        ConfigError, RankError: see `join`.
    """
    if not isinstance(config.engine, RayEngineConfig):
        return LaunchedRanks(join(config.parallelism))
    from fluxexp.experiment.engine.ray_workforce import RayWorkforce

    return RayWorkforce(config, config.engine, root)
