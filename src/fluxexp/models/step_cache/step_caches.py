"""Step caches: at some steps, most of the transformer's blocks are skipped, and their contribution is estimated.

A cache stores a residual: what blocks add to the image tokens. First Block Cache decides from the data, for each image
of a batch by itself, so that no image depends on the others. TaylorSeer and MagCache follow a plan that is made before
the first step and is the same for all images: they never wait for the device. The caches know neither the inside
of a block nor schedulers. A step is one evaluation of the denoiser. docs/caches.md has details.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from fluxexp.config.schema import FirstBlockCacheConfig, MagCacheConfig, StepCacheConfig, TaylorSeerCacheConfig


class Blocks(Protocol):
    """The transformer's blocks at one step, in two parts. Tokens are (B, image or text tokens, width)."""

    def first(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Image and text tokens after the first block."""
        ...

    def others(self, image: torch.Tensor, text: torch.Tensor, rows: Sequence[int] | None = None) -> torch.Tensor:
        """Image tokens after the last block; only those of the images `rows` of the batch, if given."""
        ...

    def mean(self, of_tokens: torch.Tensor) -> torch.Tensor:
        """Means over all image tokens, from means over the tokens of this rank: other ranks may hold the rest."""
        ...


class CachedSteps(Protocol):
    """The cache of one batch, called once per step."""

    computed_steps: list[int]
    """For each image, the number of steps so far that computed all blocks (full steps)."""

    def __call__(self, number: int, image: torch.Tensor, blocks: Blocks) -> torch.Tensor:
        """Image tokens after the last block at step `number`, from `image` tokens before the first block."""
        ...


class StepCache(Protocol):
    """A rule for skipping blocks. It keeps no state between batches."""

    def begin(self, batch: int, steps: int, left_out: int) -> CachedSteps:
        """Prepare for a batch.

        Args:
            batch: number of images.
            steps: number of steps.
            left_out: number of earlier steps of the schedule that are not run (`sampling.strength` below 1).
        """
        ...


def make_step_cache(config: StepCacheConfig) -> StepCache:
    """The cache that `config` describes.

    Raises:
        ValueError: MagCache's ratios are not known.
    """
    match config:
        case FirstBlockCacheConfig():
            return FirstBlock(config)
        case TaylorSeerCacheConfig():
            return TaylorSeer(config)
        case MagCacheConfig():
            return MagnitudeAware(config)


class FirstBlock:
    """First Block Cache (ParaAttention, after TeaCache, arXiv 2411.19108)."""

    def __init__(self, config: FirstBlockCacheConfig) -> None:
        self._config = config

    def begin(self, batch: int, steps: int, left_out: int) -> CachedSteps:
        """See `StepCache`."""
        return _FirstBlockSteps(self._config, batch, steps)


class _FirstBlockSteps:
    """The first block runs at each step. The other blocks run for the images whose first residual has changed enough.

    At a step that may skip an image, the host waits once for the device, which computes the change.
    """

    def __init__(self, config: FirstBlockCacheConfig, batch: int, steps: int) -> None:
        self._config = config
        self._skippable = range(config.warmup_steps, steps - config.last_steps)
        self._skips = [0] * batch
        self.computed_steps = [0] * batch
        self._of_first: torch.Tensor
        """Residual of the first block at the last full step of each image."""
        self._of_others: torch.Tensor
        """Residual of all other blocks at that step."""

    def __call__(self, number: int, image: torch.Tensor, blocks: Blocks) -> torch.Tensor:
        """See `CachedSteps`."""
        after_first, text = blocks.first(image)
        of_first = after_first - image
        rows = self._full_rows(number, of_first, blocks.mean)
        for row in range(len(self._skips)):
            self._skips[row] = 0 if row in rows else self._skips[row] + 1
            self.computed_steps[row] += row in rows
        if len(rows) == len(image):
            output = blocks.others(after_first, text)
            self._of_first, self._of_others = of_first, output - after_first
            return output
        # Some images are skipped: estimate all, then compute the others as a smaller batch and overwrite these.
        output = after_first + self._of_others
        if rows:
            index = torch.tensor(rows, device=image.device)
            computed = blocks.others(after_first, text, rows)
            self._of_first[index] = of_first[index]
            self._of_others[index] = computed - after_first[index]
            output[index] = computed
        return output

    def _full_rows(
        self, number: int, of_first: torch.Tensor, mean: Callable[[torch.Tensor], torch.Tensor]
    ) -> list[int]:
        """The images for which all blocks are computed."""
        may_skip = [number in self._skippable and skips < self._config.max_consecutive_skips for skips in self._skips]
        if not any(may_skip):
            return list(range(len(may_skip)))
        sizes = torch.stack((_mean_size(of_first - self._of_first), _mean_size(self._of_first)))
        # With context parallelism, `mean` gives all ranks the same bits, so that they skip the same images.
        changed, before = mean(sizes)
        change = changed / before
        is_near = (change <= self._config.threshold).tolist()  # false if a value is NaN: compute, do not skip
        return [row for row, skip in enumerate(zip(may_skip, is_near, strict=True)) if not all(skip)]


def _mean_size(tokens: torch.Tensor) -> torch.Tensor:
    """Mean absolute value of each image, float32 (B,)."""
    return tokens.abs().mean(dim=(1, 2), dtype=torch.float32)


class TaylorSeer:
    """TaylorSeer (arXiv 2503.06923), on the residual of all blocks together instead of each layer's output."""

    def __init__(self, config: TaylorSeerCacheConfig) -> None:
        self._config = config

    def begin(self, batch: int, steps: int, left_out: int) -> CachedSteps:
        """See `StepCache`."""
        return _PlannedSteps(taylorseer_plan(self._config, steps), self._config.order, batch)


def taylorseer_plan(config: TaylorSeerCacheConfig, steps: int) -> list[bool]:
    """For each step, whether it is full: the first ones, every `interval`-th one after them, and the last ones."""
    plan: list[bool] = []
    last_full = 0
    for number in range(steps):
        is_edge = number < config.warmup_steps or number >= steps - config.last_steps
        plan.append(is_edge or number - last_full >= config.interval)
        last_full = number if plan[-1] else last_full
    return plan


class MagnitudeAware:
    """MagCache (arXiv 2506.09045): repeats a residual while its magnitude, known from calibration, changes little."""

    def __init__(self, config: MagCacheConfig) -> None:
        self._config = config
        self._ratios = _ratios(config)

    def begin(self, batch: int, steps: int, left_out: int) -> CachedSteps:
        """See `StepCache`."""
        return _PlannedSteps(magcache_plan(self._config, self._ratios, steps, left_out), 0, batch)


def magcache_plan(config: MagCacheConfig, ratios: torch.Tensor, steps: int, left_out: int = 0) -> list[bool]:
    """For each step, whether it is full.

    Args:
        config: of the cache.
        ratios: ratios of the residual's magnitude between consecutive steps, float (n,). They are stretched to the
            length of the schedule by nearest-neighbor interpolation, as in the paper.
        steps: number of steps.
        left_out: number of earlier steps of the schedule that are not run.
    """
    from diffusers.hooks.mag_cache import nearest_interp

    known = nearest_interp(ratios, left_out + steps).tolist()[left_out:]
    always = max(1, int(config.retention_ratio * steps + 0.5))
    plan: list[bool] = []
    ratio, error, skips = 1.0, 0.0, 0
    for number in range(steps):
        is_full = number < always
        if not is_full:  # the accumulated error if all steps since the last full one are skipped, this one included
            ratio, skips = ratio * known[number], skips + 1
            error += abs(1.0 - ratio)
            is_full = error > config.threshold or skips > config.max_consecutive_skips
        is_full = is_full or number >= steps - config.last_steps
        if is_full:
            ratio, error, skips = 1.0, 0.0, 0
        plan.append(is_full)
    return plan


def _ratios(config: MagCacheConfig) -> torch.Tensor:
    if config.ratios == "measured":
        raise ValueError("ratios=measured must be replaced by numbers first: rank 0 does it before a run starts")
    if config.ratios == "flux_dev":
        from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS

        published: torch.Tensor = FLUX_MAG_RATIOS
        return published
    return torch.tensor(config.ratios)


class _PlannedSteps:
    """Follows a plan. At the steps that are not full, the residual of all blocks is extrapolated."""

    def __init__(self, plan: Sequence[bool], order: int, batch: int) -> None:
        self._plan = plan
        self._residual = Extrapolation(order)
        self.computed_steps = [0] * batch

    def __call__(self, number: int, image: torch.Tensor, blocks: Blocks) -> torch.Tensor:
        """See `CachedSteps`."""
        if not self._plan[number]:
            return image + self._residual.at(number)
        output = blocks.others(*blocks.first(image))
        self._residual.add(number, output - image)
        self.computed_steps[:] = [steps + 1 for steps in self.computed_steps]
        return output


class Extrapolation:
    """Extrapolates a tensor from its values at earlier steps, by finite differences as TaylorSeer (arXiv 2503.06923).

    D(0) is the newest value. D(j + 1) = (D(j) - D(j) at the value before) / (steps between the two). The estimate k
    steps later is the sum of D(j) * k**j / j!. The differences are stored as weights of the known values and not as
    tensors, so that the estimate is one weighted sum in float32, rounded once.

    Args:
        order: highest order of the differences; 0 repeats the newest value.
    """

    def __init__(self, order: int) -> None:
        self._order = order
        self._last = 0
        self._known: list[torch.Tensor] = []
        """Known values, the newest first."""
        self._differences: list[list[float]] = []
        """D(0), D(1), ..., each as weights of `_known`."""

    def add(self, number: int, value: torch.Tensor) -> None:
        """Add the value at step `number`, which must be later than those added before."""
        newest: list[list[float]] = [[1.0]]
        for before in self._differences[: self._order]:
            # The older difference has weights of the older values: its weights are one place further in `_known`.
            pairs = zip([*newest[-1], 0.0], [0.0, *before], strict=True)
            newest.append([(now - then) / (number - self._last) for now, then in pairs])
        self._differences, self._last = newest, number
        self._known = [value, *self._known[: self._order]]

    def at(self, number: int) -> torch.Tensor:
        """The estimate at step `number`."""
        ahead = number - self._last
        weights = [0.0] * len(self._differences)
        for order, difference in enumerate(self._differences):
            for index, weight in enumerate(difference):
                weights[index] += weight * ahead**order / math.factorial(order)
        if len(weights) == 1:
            return self._known[0]
        total = self._known[0].float() * weights[0]
        for value, weight in zip(self._known[1:], weights[1:], strict=True):
            total.add_(value, alpha=weight)
        return total.to(self._known[0].dtype)
