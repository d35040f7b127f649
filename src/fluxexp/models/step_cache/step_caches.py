"""Step caches: at some steps most of the transformer's blocks are left out, and what they would add is made up.

What is cached is a residual: what blocks add to the image tokens. First Block Cache decides from the data, each image
of a batch for itself by its own values, so no image depends on those beside it. TaylorSeer and MagCache go by a plan
made before the first step, the same for all images, and never wait for the device. Knows neither the blocks' inside nor
schedulers: a step is one evaluation of the denoiser, whatever is done with its velocity. docs/caches.md says more.
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
        """Image and text tokens behind the first block."""
        ...

    def others(self, image: torch.Tensor, text: torch.Tensor, rows: Sequence[int] | None = None) -> torch.Tensor:
        """Image tokens behind the last block; those of `rows` of the batch alone, where they are given."""
        ...

    def mean(self, of_tokens: torch.Tensor) -> torch.Tensor:
        """Means over all image tokens, of means over those that there are here: other ranks may hold the others."""
        ...


class CachedSteps(Protocol):
    """One batch on its way through the steps."""

    computed_steps: list[int]
    """Of each image, the steps so far that went through all blocks."""

    def __call__(self, number: int, image: torch.Tensor, blocks: Blocks) -> torch.Tensor:
        """Image tokens behind the last block at step `number`, of `image` tokens before the first."""
        ...


class StepCache(Protocol):
    """What decides for every batch anew."""

    def begin(self, batch: int, steps: int, left_out: int) -> CachedSteps:
        """Get ready for `batch` images and `steps` steps; `left_out` steps of the schedule come before them."""
        ...


def make_step_cache(config: StepCacheConfig) -> StepCache:
    """The cache that `config` describes."""
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
    """The first block runs at every step; the others for images in which its residual has changed.

    Waits for the device at steps at which an image may be skipped, once: which ones are is known only there.
    """

    def __init__(self, config: FirstBlockCacheConfig, batch: int, steps: int) -> None:
        self._config = config
        self._free = range(config.warmup_steps, steps - config.last_steps)
        self._skips = [0] * batch
        self.computed_steps = [0] * batch
        self._of_first: torch.Tensor
        """Residual of the first block at each image's last full step."""
        self._of_others: torch.Tensor
        """That of all other blocks."""

    def __call__(self, number: int, image: torch.Tensor, blocks: Blocks) -> torch.Tensor:
        """See `CachedSteps`."""
        behind_first, text = blocks.first(image)
        of_first = behind_first - image
        rows = self._full_rows(number, of_first, blocks.mean)
        for row in range(len(self._skips)):
            self._skips[row] = 0 if row in rows else self._skips[row] + 1
            self.computed_steps[row] += row in rows
        if len(rows) == len(image):
            output = blocks.others(behind_first, text)
            self._of_first, self._of_others = of_first, output - behind_first
            return output
        output = behind_first + self._of_others
        if rows:
            index = torch.tensor(rows, device=image.device)
            computed = blocks.others(behind_first, text, rows)
            self._of_first[index] = of_first[index]
            self._of_others[index] = computed - behind_first[index]
            output[index] = computed
        return output

    def _full_rows(
        self, number: int, of_first: torch.Tensor, mean: Callable[[torch.Tensor], torch.Tensor]
    ) -> list[int]:
        """The images that all blocks are computed for."""
        may_skip = [number in self._free and skips < self._config.max_consecutive_skips for skips in self._skips]
        if not any(may_skip):
            return list(range(len(may_skip)))
        sizes = torch.stack((_mean_size(of_first - self._of_first), _mean_size(self._of_first)))
        changed, before = mean(sizes)
        change = changed / before
        is_near = (change <= self._config.threshold).tolist()  # never where a value is not a number
        return [row for row, skip in enumerate(zip(may_skip, is_near, strict=True)) if not all(skip)]


def _mean_size(tokens: torch.Tensor) -> torch.Tensor:
    """Mean absolute value of each image, float32 of shape (B,)."""
    return tokens.abs().mean(dim=(1, 2), dtype=torch.float32)


class TaylorSeer:
    """TaylorSeer (arXiv 2503.06923), on the residual of all blocks together instead of each layer's output."""

    def __init__(self, config: TaylorSeerCacheConfig) -> None:
        self._config = config

    def begin(self, batch: int, steps: int, left_out: int) -> CachedSteps:
        """See `StepCache`."""
        return _PlannedSteps(taylorseer_plan(self._config, steps), self._config.order, batch)


def taylorseer_plan(config: TaylorSeerCacheConfig, steps: int) -> list[bool]:
    """Of each step whether it is full: the first ones, each `interval`-th from there, and the last ones."""
    plan: list[bool] = []
    last_full = 0
    for number in range(steps):
        is_edge = number < config.warmup_steps or number >= steps - config.last_steps
        plan.append(is_edge or number - last_full >= config.interval)
        last_full = number if plan[-1] else last_full
    return plan


class MagnitudeAware:
    """MagCache (arXiv 2506.09045): a residual is repeated while its known magnitude has hardly changed."""

    def __init__(self, config: MagCacheConfig) -> None:
        self._config = config
        self._ratios = _ratios(config)

    def begin(self, batch: int, steps: int, left_out: int) -> CachedSteps:
        """See `StepCache`."""
        return _PlannedSteps(magcache_plan(self._config, self._ratios, steps, left_out), 0, batch)


def magcache_plan(config: MagCacheConfig, ratios: torch.Tensor, steps: int, left_out: int = 0) -> list[bool]:
    """Of each step whether it is full.

    Args:
        ratios: of magnitudes from step to step, float (any number,): stretched to the schedule as the paper does.
        left_out: steps of the schedule before the first of `steps`.
    """
    from diffusers.hooks.mag_cache import nearest_interp

    known = nearest_interp(ratios, left_out + steps).tolist()[left_out:]
    always = max(1, int(config.retention_ratio * steps + 0.5))
    plan: list[bool] = []
    ratio, error, skips = 1.0, 0.0, 0
    for number in range(steps):
        is_full = number < always
        if not is_full:
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
        raise ValueError("the ratios measured for this model are looked up by rank 0 before a run gets its name")
    if config.ratios == "flux_dev":
        from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS

        published: torch.Tensor = FLUX_MAG_RATIOS
        return published
    return torch.tensor(config.ratios)


class _PlannedSteps:
    """Full steps are known beforehand; at the others the residual of all blocks is extrapolated."""

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
    """A tensor that is known at some steps, continued by finite differences as in TaylorSeer (arXiv 2503.06923).

    With D0 the newest value and D(j + 1) = (D(j) - D(j) before) / steps between them, the value k steps later is the
    sum of D(j) k^j / j!. Differences are kept as weights of the known values: rounding happens once, in float32.
    """

    def __init__(self, order: int) -> None:
        self._order = order
        self._last = 0
        self._known: list[torch.Tensor] = []
        """Newest first."""
        self._differences: list[list[float]] = []
        """Each as weights of `_known`."""

    def add(self, number: int, value: torch.Tensor) -> None:
        """Take in the value at step `number`, which comes after those before."""
        newest: list[list[float]] = [[1.0]]
        for before in self._differences[: self._order]:
            pairs = zip([*newest[-1], 0.0], [0.0, *before], strict=True)
            newest.append([(now - then) / (number - self._last) for now, then in pairs])
        self._differences, self._last = newest, number
        self._known = [value, *self._known[: self._order]]

    def at(self, number: int) -> torch.Tensor:
        """The value to expect at step `number`."""
        ahead = number - self._last
        weights = [0.0] * len(self._differences)
        for order, difference in enumerate(self._differences):
            for place, weight in enumerate(difference):
                weights[place] += weight * ahead**order / math.factorial(order)
        if len(weights) == 1:
            return self._known[0]
        total = self._known[0].float() * weights[0]
        for value, weight in zip(self._known[1:], weights[1:], strict=True):
            total.add_(value, alpha=weight)
        return total.to(self._known[0].dtype)
