"""Measure the magnitude ratios that MagCache needs for a model, on samples of a config's dataset."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fluxexp.address import Address
from fluxexp.config import RunConfig
from fluxexp.config.families import FAMILIES
from fluxexp.config.mag_ratios import ratios_file
from fluxexp.config.optimization_kinds import settled
from fluxexp.data import open_dataset, place_for
from fluxexp.errors import ConfigError, Problem, StorageError
from fluxexp.plan import Plan
from fluxexp.storage.atomic import write_atomically

if TYPE_CHECKING:
    from fluxexp.models.base import Job, MeasuredModel


def calibrate(config: RunConfig, num_samples: int) -> Path:
    """Measure the ratios of `config`'s model, scheduler and steps. Returns the file that keeps them.

    Args:
        num_samples: number of samples to use, from the first on; all if the dataset has fewer.

    Raises:
        ConfigError: the model is fake, or `sampling.strength` skips steps of the schedule.
        ModelError: the model cannot be loaded or measured.
        SampleError: a sample cannot be read.
        StorageError: the user's cache directory cannot be written.
    """
    if FAMILIES[config.model.family].pipeline is None:
        raise ConfigError(Problem("model", "has no network to measure", config.model.name, "choose a FLUX model"))
    if config.sampling.strength < 1:
        what = "skips the first steps, but calibration measures all steps"
        raise ConfigError(
            Problem("sampling.strength", what, config.sampling.strength, "use 1.0; the ratios apply to every strength")
        )
    from fluxexp.models.loading.model_loader import load_model  # torch
    from fluxexp.parallel.topology import join

    topology = join(config.parallelism)
    optimization = replace(config.optimization, step_cache=None, hoist_constants=True)
    plain = settled(replace(config, optimization=optimization), has_gpu=topology.device.type == "cuda")
    model: MeasuredModel = load_model(plain, topology.device, topology.rank)  # type: ignore[assignment]
    file = ratios_file(plain)
    ratios = model.measure_ratios([job] for job in _jobs(plain, model, num_samples))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(ratios))
    except OSError as error:
        raise StorageError(f"{file} cannot be written: {error}") from error
    return file


def _jobs(config: RunConfig, model: MeasuredModel, num_samples: int) -> Iterator[Job]:
    """Yield a conditioned job for the first image of each sample. It prepares one sample at a time."""
    from fluxexp.models.base import Job
    from fluxexp.worker.conditioner import model_input

    plan = Plan.of(config, open_dataset(config.dataset), Address.of("."))
    sampling = config.sampling
    for index in range(min(num_samples, len(plan.dataset))):
        task, sample = plan.task(index * sampling.images_per_sample), plan.dataset.load(index)
        placed = place_for(sample, config)
        (conditioning,) = model.condition([model_input(sample, placed, task.point)], sampling.max_sequence_length)
        yield Job(conditioning, task.point, task.seed)
