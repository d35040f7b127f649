"""What the order of work needs to know of a task: what it can share a batch with, and its cost."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from fluxexp.config import RunConfig
from fluxexp.config.families import FAMILIES
from fluxexp.config.tokenizer_limit import tokenizer_limit
from fluxexp.config.work import denoising_work
from fluxexp.data import Dataset, working_size
from fluxexp.parallel.batching import full_batch_size
from fluxexp.plan import Plan
from fluxexp.records import ControlUse, IpAdapterUse, LoraUse, Point, ReduxUse

_MEASURED = 5_000
"""If a dataset has more samples than this, image sizes are not read before the work."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Tasks with equal `name` and `size` can share a batch."""

    name: Hashable
    """All settings that a batch cannot mix."""
    lora: tuple[LoraUse, ...]
    """A part of `name`. Another one costs a change of the model's weights."""
    size: tuple[int, int]
    """(width, height) in pixels, as far as it is known before the sample is read."""
    cost: float
    """Steps times tokens. The time of the denoiser is roughly proportional to it."""
    batch_size: int
    """Number of tasks that a batch will probably have."""


class TaskKinds:
    """Looks up the kind of each task of runs that share a model.

    Args:
        plans: of the runs.
        is_cpu: whether the devices are CPUs, which have smaller batches.
    """

    def __init__(self, plans: Sequence[Plan], *, is_cpu: bool) -> None:
        self._plans = plans
        self._is_cpu = is_cpu
        self._limit = tokenizer_limit(plans[0].config.model)
        self._sizes: dict[tuple[int, int], tuple[int, int]] = {}
        self._kinds: dict[tuple[int, tuple[int, int], tuple[LoraUse, ...], bool], Kind] = {}

    def __call__(self, run: int, number: int) -> Kind:
        """The kind of task `number` of a run."""
        plan = self._plans[run]
        index = plan.sample_index(number)
        size, point = self._size(run, index), plan.point_of(index)
        lora = () if plan.config.lora.mixing else point.lora
        key = run, size, lora, point.makes_second_pass
        if key not in self._kinds:
            self._kinds[key] = self._kind(plan, point, size, lora)
        return self._kinds[key]

    def _size(self, run: int, index: int) -> tuple[int, int]:
        if (run, index) not in self._sizes:
            plan = self._plans[run]
            self._sizes[run, index] = _working_size(plan.config, plan.dataset, index)
        return self._sizes[run, index]

    def _kind(self, plan: Plan, point: Point, size: tuple[int, int], lora: tuple[LoraUse, ...]) -> Kind:
        """A batch can mix guidance, seeds, prompts, scales above 1, and scales and modes of a ControlNet, nothing else.

        See `PreparedSample.shape`.

        Args:
            lora: what the batch must share; empty if it can mix LoRAs.
        """
        sampling, (width, height) = plan.config.sampling, size
        family = FAMILIES[plan.config.model.family]
        tokens = family.tokens(width * height, family.text_tokens(sampling.max_sequence_length, self._limit))
        tokens *= 2 if point.makes_second_pass else 1  # as `BatchMaker` counts the rows of a batch
        return Kind(
            name=(_mixed(point, lora), sampling.max_pixels, sampling.batch_size),
            lora=lora,
            size=size,
            cost=denoising_work(plan.config.model, point, *size),
            batch_size=sampling.batch_size or full_batch_size(tokens, self._is_cpu),
        )


def has_one_kind(plan: Plan) -> bool:
    """Whether the tasks of a run are of one kind, as far as it is known before they are read: of one working size."""
    has_one_size = _has_one_size(plan.config, plan.dataset)
    return has_one_size and not plan.dataset.has_loras and not plan.mixes_passes


def _working_size(config: RunConfig, dataset: Dataset, index: int) -> tuple[int, int]:
    """(width, height) in pixels; the model's default square if the size is not known."""
    sampling = config.sampling
    height = width = config.model.resolution
    if not _has_one_size(config, dataset):
        height, width = dataset.size(index) or (height, width)
    return working_size((width, height), sampling.height, sampling.width, sampling.max_pixels)


def _has_one_size(config: RunConfig, dataset: Dataset) -> bool:
    sampling = config.sampling
    return (sampling.height is not None and sampling.width is not None) or len(dataset) > _MEASURED


def _mixed(point: Point, lora: tuple[LoraUse, ...]) -> Point:
    """`point` without what a batch can mix."""
    scale = 2.0 if point.makes_second_pass else 1.0
    span = point.control.span
    control = ControlUse(scale=0.0) if span is None else ControlUse(start=span[0], end=span[1])
    return replace(
        point,
        guidance=0.0,
        seed=0,
        lora=lora,
        true_cfg_scale=scale,
        negative_prompt=None,
        prompt_2=None,
        control=control,
        redux=ReduxUse(),
        ip_adapter=IpAdapterUse(),
    )
