"""Robust means of batches, compared with SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mstats

from fluxexp.compare.batch_times import ImageTimes, StageTimes


def images(*batches: tuple[float, int], size: int = 1) -> ImageTimes:
    """The images of batches, each given by its seconds per image and its number of images."""
    seconds, counts = zip(*batches, strict=True)
    repeated = np.repeat(np.array(seconds), counts)
    return ImageTimes({"denoise": repeated}, np.full(sum(counts), size), np.repeat(np.array(counts), counts))


def test_one_pause_of_the_machine_changes_nothing() -> None:
    usual = [1.0, 1.1, 0.9, 1.05, 0.95, 1.02, 0.98]
    times = StageTimes.of(images(*((value, 3) for value in [*usual, 90.0])), "denoise")
    found = times.of_images(np.ones(24, np.int64))
    assert found.mean == pytest.approx(np.mean(sorted([*usual, 90.0])[1:-1]))
    assert (found.low, found.high) == pytest.approx(tuple(mstats.trimmed_mean_ci(np.array([*usual, 90.0]), (0.2, 0.2))))


def test_the_interval_is_over_batches_not_images() -> None:
    few = StageTimes.of(images((1.0, 2), (1.2, 2), (1.4, 2)), "denoise").of_images(np.ones(6, np.int64))
    many = StageTimes.of(images((1.0, 9), (1.2, 9), (1.4, 9)), "denoise").of_images(np.ones(27, np.int64))
    assert few == many
    assert few.low is not None


def test_two_batches_have_no_interval() -> None:
    found = StageTimes.of(images((1.0, 2), (1.2, 2)), "denoise").of_images(np.ones(4, np.int64))
    assert found.mean == pytest.approx(1.1)
    assert found.low is None
    assert found.high is None


def test_the_smaller_batches_at_the_end_do_not_count() -> None:
    found = StageTimes.of(images((1.0, 4), (1.2, 4), (3.0, 1)), "denoise").of_images(np.ones(9, np.int64))
    assert found.mean == pytest.approx(1.1)


def test_each_size_of_images_has_its_mean_and_its_weight() -> None:
    both = ImageTimes.joined([images((1.0, 2), (1.2, 2)), images((10.0, 1), (12.0, 1), size=2)])
    found = StageTimes.of(both, "denoise").of_images(np.array([1, 1, 1, 2]))
    assert found.mean == pytest.approx(0.75 * 1.1 + 0.25 * 11)
    assert found.low is not None, "the relative spread is that of both sizes"


def test_intervals_have_their_nominal_coverage() -> None:
    """A tenth of the batches is slowed down. The interval is that of the trimmed mean of such batches."""
    rng = np.random.default_rng(0)

    def batches(number: int) -> ImageTimes:
        pauses = np.where(rng.random(number) < 0.1, rng.exponential(0.5, number), 0)
        return images(*((value, 1) for value in rng.normal(1, 0.05, number) + pauses))

    true = StageTimes.of(batches(20_000), "denoise").of_images(np.ones(1, np.int64)).mean
    found = [StageTimes.of(batches(12), "denoise").of_images(np.ones(1, np.int64)) for _ in range(400)]
    covered = sum(one.low is not None and one.high is not None and one.low <= true <= one.high for one in found)
    assert covered >= 0.93 * 400
