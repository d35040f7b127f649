"""What the scoring pass reads and computes once for all points of a sweep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fluxexp.address import Address
from fluxexp.arrays import FeatureArray, ImageArray
from fluxexp.compare import references
from fluxexp.config import RunConfig
from fluxexp.data import Dataset, open_dataset
from fluxexp.experiment import run_experiment
from fluxexp.metrics.case import ScoredSample
from fluxexp.metrics.metric_set import MetricSet, make_metrics
from fluxexp.plan import Plan
from fluxexp.scoring import shared_samples
from fluxexp.scoring.pending_scores import ScoringRun, find_pending_scores
from fluxexp.scoring.scorer import Scorer
from fluxexp.scoring.scoring_pass import _entries, _score_sets
from fluxexp.storage.feature_store import SetScore
from fluxexp.storage.sweep_directory import SweepDirectory

Compose = Callable[..., RunConfig]
SMALL = ("model=fake", "dataset.height=32", "dataset.width=32", "dataset.limit=6", "tracking=disabled", "report=off")
STEPS = (1, 2, 4)


@pytest.fixture
def plans(compose: Compose, tmp_path: Path) -> list[Plan]:
    """Points whose images exist, without scores."""
    datasets: dict[str, Dataset] = {}
    plans = []
    for steps in STEPS:
        point = (*SMALL, f"sampling.steps={steps}")
        made = compose(*point, f"output.dir={tmp_path / str(steps)}", "metrics=none")
        run_experiment(made, Address.of(tmp_path), [])
        scored = compose(*point, f"output.dir={tmp_path / str(steps)}", "metrics=basic")
        dataset = datasets.setdefault("", open_dataset(scored.dataset))
        plans.append(Plan.of(scored, dataset, Address.of(tmp_path)))
    return plans


@pytest.mark.parametrize("threads", [1, 4])
def test_samples_and_references_are_read_once(
    plans: list[Plan], tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        call = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *values: (counts.update([name]), call(*values))[1])

    count(type(plans[0].dataset), "load")
    count(shared_samples, "read_pixels")
    sweep = SweepDirectory(Address.of(tmp_path / "sweep"))
    metric_set = make_metrics(plans[0].config.metrics, torch.device("cpu"))
    runs = find_pending_scores(plans, references([plan.config for plan in plans]), sweep, metric_set)
    with Scorer(runs, metric_set, sweep, threads) as scorer:
        scorer.score(_entries(runs))
    assert (scorer.num_scored, scorer.num_errors) == (18, 0)
    assert counts == {"load": 6, "read_pixels": 6}
    for reader in (*(plan.directory.reader for plan in plans), sweep.reader):
        reader.refresh_scores()
    assert [len(plan.directory.reader.scores()) for plan in plans] == [6, 6, 6]
    assert len(sweep.reader.scores()) == 12


def test_points_with_other_sizes_do_not_share_placed_samples(compose: Compose) -> None:
    small, large = (compose(*SMALL, "output.paste=false", f"sampling.height={side}") for side in (16, 32))
    assert ScoredSample.key(small) != ScoredSample.key(large)


class TwoFeatures:
    """An extractor without a network."""

    name = "two"
    metrics = ("kid",)

    def features(self, pixels: ImageArray) -> FeatureArray:
        return np.array([pixels[..., 0].mean(), pixels[..., 1].std()], np.float32)


def test_distances_of_an_earlier_pass_go_when_the_images_are_too_few(plans: list[Plan]) -> None:
    """An older fluxexp computed them from 8 images on."""
    plan = plans[0]
    plan.directory.writer.write_set_scores({"kid": SetScore(1.5, None, None)}, 8)
    metric_set = MetricSet((), (), [TwoFeatures()])
    with Scorer([ScoringRun(plan, range(6), None)], metric_set, None, 1) as scorer:
        scorer.score([(0, number) for number in range(6)])
    omitted = _score_sets([plan], metric_set)
    assert "6 results" in omitted["kid"]
    assert plan.directory.reader.set_scores()[0] == {}
