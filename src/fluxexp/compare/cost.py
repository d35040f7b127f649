"""Cost of the images of runs, from their records. Runs share the measurements of what they share.

Only denoising is measured for each point. Points that a batch can mix have the same denoising time, because each batch
divides its time equally. Decoding and conditioning do not depend on steps, scheduler or guidance, so points that differ
only in these have the same times for them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from fluxexp.compare.batch_times import Estimate, ImageTimes, StageTimes
from fluxexp.compare.run_view import RunView
from fluxexp.compare.settings import settings_of

_STAGES = ("condition", "denoise", "decode")
MIXED = ("sampling.guidance", "sampling.seed")
"""Settings that can differ within a batch."""
_SCALE = "sampling.true_cfg_scale"
_OF_DENOISING = (*MIXED, "sampling.steps", "sampling.strength", "scheduler.")
"""Settings that change nothing but denoising."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of one image of a run: time and energy of one device, and money if the price is known."""

    device_s_per_image: float | None
    """Conditioning, denoising and decoding, without warm-up. Work that points of a sweep share counts for each."""
    device_s_low: float | None
    """Lower end of the 95 % confidence interval of `device_s_per_image`; None for fewer than three batches."""
    device_s_high: float | None
    """Upper end."""
    images_per_hour_per_device: float | None
    joules_per_image: float | None
    usd_per_image: float | None

    def to_json(self) -> dict[str, float | None]:
        """As `summary.json` has it."""
        return {name: None if value is None else float(f"{value:.6g}") for name, value in asdict(self).items()}


def costs_of(runs: Sequence[RunView]) -> list[Cost]:
    """Cost of one image of each run, from the records of all sessions."""
    seconds: list[Estimate | None] = [None] * len(runs)
    times = {number: _times(run) for number, run in enumerate(runs) if run.num_images}
    for alike in runs_alike(runs, times, _OF_DENOISING):
        decode = StageTimes.of(ImageTimes.joined([times[number] for number in alike]), "decode")
        condition_s = _condition_s_per_sample([runs[number] for number in alike], [times[number] for number in alike])
        for mixed in runs_alike(runs, alike, MIXED):
            denoise = StageTimes.of(ImageTimes.joined([times[number] for number in mixed]), "denoise")
            for number in mixed:
                sizes = times[number].sizes
                shared_s = decode.of_images(sizes).mean + condition_s * runs[number].num_samples / len(sizes)
                seconds[number] = _plus(denoise.of_images(sizes), shared_s)
    return [_cost(run, estimate) for run, estimate in zip(runs, seconds, strict=True)]


def runs_alike(runs: Sequence[RunView], numbers: Iterable[int], without: tuple[str, ...]) -> list[list[int]]:
    """`numbers` of runs, grouped by all settings except those that begin with one of `without`.

    Scales above 1 of true CFG are alike: a batch can mix them, and each of them costs a second pass.
    """
    groups: dict[Hashable, list[int]] = {}
    for number in numbers:
        settings = settings_of(runs[number].config)
        settings[_SCALE] = settings[_SCALE] > 1
        key = repr({name: value for name, value in settings.items() if not name.startswith(without)})
        groups.setdefault(key, []).append(number)
    return list(groups.values())


def _times(run: RunView) -> ImageTimes:
    rows, index = run.results.rows[run.results.is_made], run.results.index
    heights, widths = index.column("height")[rows].astype(np.int64), index.column("width")[rows].astype(np.int64)
    return ImageTimes(
        {stage: index.column(f"{stage}_s")[rows] for stage in _STAGES},
        (heights << 32) + widths,
        index.column("batch_size")[rows].astype(np.int64),
    )


def _condition_s_per_sample(runs: Sequence[RunView], times: Sequence[ImageTimes]) -> float:
    """Seconds of conditioning per sample. Runs that share a model condition each sample once."""
    num_samples = runs[0].num_samples if len(runs) == 1 else len({key for run in runs for key in run.sample_keys()})
    return sum(float(images.seconds["condition"].sum()) for images in times) / num_samples


def _plus(estimate: Estimate, seconds: float) -> Estimate:
    if estimate.low is None or estimate.high is None:
        return Estimate(estimate.mean + seconds, None, None)
    return Estimate(estimate.mean + seconds, estimate.low + seconds, estimate.high + seconds)


def _cost(run: RunView, seconds: Estimate | None) -> Cost:
    mean = None if seconds is None else seconds.mean
    usd = run.config.cost.usd_per_gpu_hour
    sessions = run.summary.get("sessions") or [run.summary]  # before 0.2, a summary had only the last one
    ranks = [rank for session in sessions for rank in session.get("ranks", ()) if rank.get("energy_j") is not None]
    made = sum(rank.get("num_images", 0) for rank in ranks)
    return Cost(
        device_s_per_image=mean,
        device_s_low=None if seconds is None else seconds.low,
        device_s_high=None if seconds is None else seconds.high,
        images_per_hour_per_device=3600 / mean if mean else None,
        joules_per_image=sum(rank["energy_j"] for rank in ranks) / made if made else None,
        usd_per_image=None if usd is None or mean is None else usd * mean / 3600,
    )
