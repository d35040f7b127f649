"""The verdicts of a gate, on the images of real runs with chosen scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fluxexp.address import Address
from fluxexp.compare.intervals import evidence_of_difference, one_sided_bounds
from fluxexp.compare.verdicts import num_samples_needed
from fluxexp.config.schema import FullMetricsConfig
from fluxexp.errors import ComparisonError
from fluxexp.gate.gate_check import judge_pairs
from fluxexp.gate.gate_metrics import GateMetric, gate_metric
from fluxexp.gate.gate_result import GateResult
from fluxexp.gate.gate_text import lines_of, sentence
from fluxexp.gate.run_pairs import RunPairs
from fluxexp.metrics.full import metric_weights, perceptual
from fluxexp.metrics.full.metric_weights import FoundWeights
from fluxexp.metrics.full.perceptual import Perceptual
from tests.gate.conftest import config_of
from tests.gate.made_runs import make_run, pairs_of, with_scores

ADHERENCE = gate_metric("adherence", 0.03)
SSIM = gate_metric("ssim_hole", 0.01)
SEAM = gate_metric("seam", 1.0)
SETTINGS = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)


@pytest.fixture(scope="module")
def runs(two_runs: tuple[Path, Path]) -> RunPairs:
    return pairs_of(*two_runs)


@pytest.fixture(scope="module")
def same(two_runs: tuple[Path, Path]) -> RunPairs:
    return pairs_of(two_runs[1], two_runs[1])


def judged(runs: RunPairs, *metrics: GateMetric, level: float = 0.95) -> GateResult:
    return judge_pairs(Address.of("fast"), Address.of("slow"), runs, metrics, level)


def of_scores(
    runs: RunPairs, metric: GateMetric, ours: Sequence[float], theirs: Sequence[float], level: float = 0.95
) -> GateResult:
    name = metric.info.name
    return judged(with_scores(runs, {name: ours}, {name: theirs}), metric, level=level)


def noise(number: int, seed: int = 0, scale: float = 0.02) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, number)


def test_a_small_loss_passes(runs: RunPairs) -> None:
    slow = 0.8 + noise(64)
    result = of_scores(runs, SSIM, list(slow - 0.003 + noise(64, 1)), list(slow))
    (one,) = result.metrics
    assert result.verdict == one.verdict == "pass"
    assert one.low is not None
    assert one.low > -0.01 == one.metric.limit
    assert sentence(result) == "PASS: with 95 % confidence, SSIM, masked is worse by at most 0.01."


def test_a_large_loss_fails_in_either_direction(runs: RunPairs) -> None:
    slow = 0.8 + noise(64)
    result = of_scores(runs, SSIM, list(slow - 0.03), list(slow))
    assert result.verdict == "fail"
    assert sentence(result) == "FAIL: With 95 % confidence, SSIM, masked is worse by more than 0.01."
    assert of_scores(runs, SSIM, list(slow + 0.03), list(slow)).verdict == "pass", "a better score is no loss"
    assert of_scores(runs, SEAM, list(slow + 3), list(slow)).verdict == "fail", "lower is better"
    assert of_scores(runs, SEAM, list(slow - 3), list(slow)).verdict == "pass"


def test_the_verdict_is_that_of_the_one_sided_bound(runs: RunPairs) -> None:
    slow, fast = 0.8 + noise(32), 0.798 + noise(32, 1)
    (one,) = of_scores(runs, SSIM, list(fast), list(slow), level=0.9).metrics
    evidence = evidence_of_difference(fast, slow, range(32))
    assert evidence is not None
    low, high = one_sided_bounds(evidence, 0.9)
    assert one.low == pytest.approx(low)
    assert one.high == pytest.approx(high)
    for tolerance, verdict in ((-low + 1e-6, "pass"), (-low - 1e-6, "undecided")):
        assert of_scores(runs, gate_metric("ssim_hole", tolerance), list(fast), list(slow), 0.9).verdict == verdict


def test_the_number_of_samples_that_is_said_would_decide(runs: RunPairs) -> None:
    drawn = noise(16)
    differences = (drawn - drawn.mean()) * 0.019 / drawn.std(ddof=1) - 0.004
    (one,) = of_scores(runs, SSIM, list(0.8 + differences), [0.8] * 16).metrics
    assert one.verdict == "undecided"
    needed = one.num_samples_needed
    assert needed == np.ceil(num_samples_needed(0.019, 0.006)) == 62
    passed = 0
    for seed in range(40):
        scores = 0.8 - 0.004 + noise(needed, seed, 0.019)
        passed += of_scores(runs, SSIM, list(scores), [0.8] * needed).verdict == "pass"
    assert 26 <= passed < 40, "80 % of 40 are expected"


def test_flips_are_counted(runs: RunPairs) -> None:
    slow = [1.0] * 40 + [0.0] * 8
    fast = [0.0] * 10 + [1.0] * 30 + [1.0] * 2 + [0.0] * 6
    (one,) = of_scores(runs, ADHERENCE, fast, slow).metrics
    assert (one.num_worse, one.num_better, one.verdict) == (10, 2, "fail")
    assert (one.candidate_mean, one.reference_mean) == (32 / 48, 40 / 48)
    assert one.worst is not None
    assert (one.worst.sample_key, one.worst.candidate, one.worst.reference) == (runs.pairs[0].key[0], 0, 1)


def test_too_few_samples_are_undecided(runs: RunPairs) -> None:
    result = of_scores(runs, SSIM, [0.8] * 7, [0.8] * 7)
    (one,) = result.metrics
    assert (one.verdict, one.low, one.high, one.num_samples_needed) == ("undecided", None, None, 8)
    assert "at least 8" in sentence(result)


def test_equal_scores_of_other_images_prove_nothing_more_than_scores_do(runs: RunPairs, same: RunPairs) -> None:
    """16 equal pairs of 0/1 scores leave a loss of 0.03 possible. Identical images do not."""
    scores = [1.0] * 16
    assert of_scores(runs, ADHERENCE, scores, scores).verdict == "undecided"
    result = of_scores(same, ADHERENCE, scores, scores)
    assert (result.verdict, result.identical) == ("pass", True)
    assert sentence(result) == "PASS: all 16 pairs of images are identical."


def test_several_metrics_are_tested_at_the_levels_of_holm(runs: RunPairs) -> None:
    slow = 0.8 + noise(64)
    metrics = (SSIM, gate_metric("psnr_hole", 0.3))
    scores = {"ssim_hole": list(slow - 0.003 + noise(64, 1)), "psnr_hole": list(slow + noise(64, 2, 6.0))}
    result = judged(with_scores(runs, scores, {"ssim_hole": list(slow), "psnr_hole": list(slow)}), *metrics)
    ssim, psnr = result.metrics
    assert (ssim.verdict, psnr.verdict, result.verdict) == ("pass", "undecided", "undecided")
    assert ssim.pass_level == pytest.approx(0.975)
    assert psnr.pass_level == pytest.approx(0.95)
    (alone,) = of_scores(runs, SSIM, scores["ssim_hole"], list(slow)).metrics
    assert alone.low is not None
    assert ssim.low is not None
    assert ssim.low < alone.low, "the bound belongs to the stricter level"


def test_distances_need_no_scores(runs: RunPairs, same: RunPairs) -> None:
    metrics = [gate_metric("psnr_to_reference", 40), gate_metric("ssim_to_reference", 0.01)]
    psnr, ssim = judged(same, *metrics).metrics
    assert (psnr.verdict, psnr.value, ssim.verdict, ssim.value) == ("pass", 100, "pass", 1)
    result = judged(runs, *metrics)
    psnr, ssim = result.metrics
    assert result.verdict == "fail"
    assert psnr.worst is not None
    assert psnr.worst.candidate <= psnr.value < 40
    assert psnr.candidate_mean is psnr.reference_mean is None
    assert any("PSNR to reference" in line and ">= 40" in line for line in lines_of(result))
    loose = judged(runs, gate_metric("psnr_to_reference", psnr.worst.candidate - 1)).metrics
    assert loose[0].verdict == "pass"


def test_lpips_of_the_two_images(runs: RunPairs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a stand-in for the network, because its weights are not part of fluxexp."""
    weights = tmp_path / "alexnet.pt"
    weights.touch()
    asked: list[str | None] = []

    def find(config: FullMetricsConfig) -> FoundWeights:
        asked.append(config.weights.alexnet)
        return FoundWeights({"alexnet": weights}, {})

    def stand_in(path: Path, device: torch.device) -> Perceptual:
        assert path == weights
        return Perceptual("lpips", MeanDifference(), "stand-in", device)

    monkeypatch.setattr(metric_weights, "find_weights", find)
    monkeypatch.setattr(perceptual, "make_lpips", stand_in)
    metric = gate_metric("lpips_to_reference", 0.5)
    (one,) = judge_pairs(Address.of("fast"), Address.of("slow"), runs, [metric], 0.95, str(weights)).metrics
    assert (one.verdict, one.metric.limit, asked) == ("pass", 0.5, [str(weights)])
    assert 0 < one.value < 0.5
    assert one.worst is not None
    assert one.worst.candidate >= one.value
    (strict,) = judged(runs, gate_metric("lpips_to_reference", one.value / 4)).metrics
    assert (strict.verdict, asked[1]) == ("fail", "download"), "the runs name no weights"


def test_missing_weights_of_lpips_are_an_error(runs: RunPairs) -> None:
    with pytest.raises(ComparisonError, match=r"lpips_to_reference is not available: .*ssim_to_reference"):
        judge_pairs(Address.of("a"), Address.of("b"), runs, [gate_metric("lpips_to_reference", None)], 0.95, "no.pt")


class MeanDifference(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean()


@SETTINGS
@given(st.lists(st.floats(-100, 100), min_size=8, max_size=40), st.sampled_from(["ssim_hole", "seam", "adherence"]))
def test_a_run_against_itself_passes(same: RunPairs, values: list[float], metric: str) -> None:
    values = [float(value > 0) for value in values] if metric == "adherence" else values
    result = of_scores(same, gate_metric(metric, None), values, values)
    assert (result.verdict, result.identical) == ("pass", True)
    assert result.metrics[0].worst is None


@SETTINGS
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=8, max_size=40), st.booleans())
def test_swapping_candidate_and_reference_negates_the_difference(
    runs: RunPairs, values: list[tuple[float, float]], binary: bool
) -> None:
    if binary:
        values = [(float(a > 0.5), float(b > 0.5)) for a, b in values]
    ours, theirs = [a for a, _ in values], [b for _, b in values]
    metric = ADHERENCE if binary else SSIM
    (there,) = of_scores(runs, metric, ours, theirs).metrics
    (back,) = of_scores(runs, metric, theirs, ours).metrics
    assert there.value == pytest.approx(-back.value, abs=1e-12)
    assert there.low is not None
    assert back.high is not None
    assert there.low == pytest.approx(-back.high, abs=1e-9)
    assert (there.num_better, there.num_worse) == (back.num_worse, back.num_better)
    assert (there.candidate_mean, there.reference_mean) == (back.reference_mean, back.candidate_mean)


def test_images_of_one_sample_count_as_one(tmp_path: Path) -> None:
    config = config_of("dataset.length=9", "sampling.images_per_sample=4")
    pairs = pairs_of(directory := make_run(config, tmp_path), directory)
    (one,) = of_scores(pairs, SSIM, [0.8] * 36, [0.8] * 36).metrics
    assert (one.num_pairs, one.num_samples) == (36, 9)


def test_a_score_that_only_one_run_has_is_an_error(runs: RunPairs) -> None:
    scored = with_scores(runs, {"ssim_hole": [0.8] * 10}, {"seam": [0.8] * 10})
    with pytest.raises(ComparisonError, match=r"10 of 10 images in .* have no score ssim_hole.*fluxexp\.score"):
        judged(scored, SSIM)
