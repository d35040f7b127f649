"""Distances between sets are compared with short NumPy formulas and with the library. Also tests the features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fluxexp.metrics.full.feature_extractors import InceptionFeatures
from fluxexp.metrics.full.metric_weights import weights_identity
from fluxexp.metrics.full.set_distances import MIN_IMAGES, set_scores, too_few
from fluxexp.metrics.metric_set import make_metrics
from tests.metrics.test_basic import scene_case

CPU = torch.device("cpu")
ALL = ("fid", "kid", "cmmd")


def sets(seed: int, shift: float, numbers: tuple[int, int] = (60, 60), width: int = 6) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        rng.normal(at, 1, (number, width)).astype(np.float32) for at, number in zip((0, shift), numbers, strict=True)
    ]


def value(metric: str, a: np.ndarray, b: np.ndarray) -> float:
    return set_scores([metric], a, b)[metric].value


def cubic(x: Any, y: Any) -> Any:
    return (x.astype(float) @ y.T / x.shape[1] + 1) ** 3


def gaussian(x: Any, y: Any) -> Any:
    return np.exp(-((x[:, None].astype(float) - y[None]) ** 2).sum(-1) / (2 * 10**2))


@pytest.mark.parametrize(("metric", "kernel"), [("kid", cubic), ("cmmd", gaussian)])
@pytest.mark.parametrize("numbers", [(60, 60), (60, 40)])
def test_kernel_distances_equal_their_formula(metric: str, kernel: Any, numbers: tuple[int, int]) -> None:
    """The mean over pairs of different samples. With as many truths as results, row n of both has the same sample."""
    a, b = sets(3, 0.5, numbers)
    within = sum((kernel(x, x).sum() - np.trace(kernel(x, x))) / (len(x) * (len(x) - 1)) for x in (a, b))
    across = kernel(a, b)
    between = across[~np.eye(60, dtype=bool)].mean() if len(a) == len(b) else across.mean()
    assert value(metric, a, b) == pytest.approx(1000 * (within - 2 * between), rel=1e-6)


def test_unbiased_distances_of_equal_distributions_are_0_on_average() -> None:
    for metric in ("kid", "cmmd"):
        values = [value(metric, *sets(seed, 0, (20, 19))) for seed in range(60)]
        assert abs(np.mean(values)) < 3 * np.std(values) / 60**0.5
        assert min(values) < 0


def test_fid_equals_its_formula_and_the_library() -> None:
    from torchmetrics.image.fid import _compute_fid

    a, b = sets(1, 0.5, (60, 50))
    covariances = [np.cov(x, rowvar=False) for x in (a, b)]
    roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).astype(complex)).real.sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1]) - 2 * roots
    found = value("fid", a, b)
    assert found == pytest.approx(expected, rel=1e-5)
    values = [torch.from_numpy(x).double() for x in (a, b)]
    library = _compute_fid(values[0].mean(0), torch.cov(values[0].T), values[1].mean(0), torch.cov(values[1].T))
    assert found == pytest.approx(float(library), rel=1e-5)


def test_fid_is_correct_for_features_without_variance() -> None:
    """Features that are 0 in additional dimensions do not change the distance."""
    a, b = sets(2, 1.0, (80, 90), 2)
    wide = [np.pad(x, ((0, 0), (0, 62))) for x in (a, b)]
    assert value("fid", wide[0], wide[1]) == pytest.approx(value("fid", a, b), rel=1e-6)


def test_distances_between_sets_grow_with_the_difference() -> None:
    a, near = sets(4, 0.3)
    far = near + 1
    same, small, large = (set_scores(ALL, a, other) for other in (a, near, far))
    assert [same[name].value for name in ALL] == pytest.approx([0, 0, 0], abs=1e-5)
    for name in ALL:
        assert same[name].value < small[name].value < large[name].value
    assert small == set_scores(ALL, a, near), "the random halves are the same in each call"


def test_intervals_contain_the_distance_of_the_distributions() -> None:
    """Their coverage over 60 simulated runs, with a tolerance of three standard deviations."""
    for metric in ("kid", "cmmd"):
        truth = np.mean([value(metric, *sets(1000 + seed, 0.6, (400, 399))) for seed in range(8)])
        found = [set_scores([metric], *sets(seed, 0.6, (40, 40)))[metric] for seed in range(60)]
        assert all(score.low is not None and score.low <= score.value for score in found)
        ends = [(score.low, score.high) for score in found]
        covered = sum(bool(low is not None and high is not None and low <= truth <= high) for low, high in ends)
        assert covered >= 60 * 0.95 - 3 * (60 * 0.95 * 0.05) ** 0.5


def test_the_interval_of_fid_is_not_negative() -> None:
    found = set_scores(["fid"], *sets(0, 0, (30, 30)))["fid"]
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= found.value <= found.high


def test_a_shared_ground_truth_counts_once() -> None:
    a, b = sets(5, 0.5, (40, 20))
    shared = np.repeat(b, 2, axis=0)
    assert value("fid", a, shared) == pytest.approx(value("fid", a, b))
    samples = np.arange(40) // 2
    differ = samples[:, None] != samples[None]
    across = samples[:, None] != np.arange(20)[None]
    within = cubic(a, a)[differ].mean() + cubic(b, b)[~np.eye(20, dtype=bool)].mean()
    assert value("kid", a, shared) == pytest.approx(1000 * (within - 2 * cubic(a, b)[across].mean()), rel=1e-6)


def test_too_few_images_give_no_distance_but_a_reason() -> None:
    a, b = sets(6, 1.0, (MIN_IMAGES, MIN_IMAGES - 1))
    assert set_scores(ALL, a, b) == {}
    assert too_few("kid", a, b) == "there are 16 results and 15 ground truths, but at least 16 of each are needed"
    assert "0 ground truths" in str(too_few("kid", a, np.zeros((0, 0), np.float32))), "text to image has no truth"
    assert too_few("cmmd", a, a) is None


def test_fid_needs_more_images_than_features() -> None:
    few = np.zeros((2048, 2048), np.float32)
    few[:, 0] = np.arange(2048)
    reason = "there are 2048 results and 2048 ground truths, but at least 2049 of each are needed"
    assert too_few("fid", few, few) == reason
    assert too_few("kid", few, few) is None


def test_clip_features_are_named_by_their_weights(full: Callable[..., Any], clip: Path) -> None:
    made = make_metrics(full("metrics.use=[cmmd]"), CPU)
    (extractor,) = made.extractors
    assert (extractor.name, tuple(extractor.metrics)) == (f"clip-{weights_identity(clip)}", ("cmmd",))
    features = extractor.features(scene_case().result)
    assert features.shape == (16,)
    assert features.dtype == np.dtype("float32")
    assert np.linalg.norm(features) == pytest.approx(1, rel=1e-5)


def test_inception_features_equal_those_of_the_library(
    full: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason="needs torch-fidelity")
    kind = library.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:  # the library cannot create the network without weights
        patch.setattr(library, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(kind, "load_state_dict", lambda *_: None)
        network = kind("inception-v3-compat", ["2048"])
    for parameter in network.parameters():
        if parameter.ndim == 4:
            torch.nn.init.kaiming_normal_(parameter, generator=torch.Generator().manual_seed(0))
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    made = make_metrics(full("metrics.use=[fid,kid]", f"metrics.weights.inception={tmp_path / 'inception.pth'}"), CPU)
    (extractor,) = made.extractors
    assert tuple(extractor.metrics) == ("fid", "kid")
    picture = scene_case().result
    expected = network(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None])[0][0]
    features = extractor.features(picture)
    assert features.shape == (2048,)
    assert features.dtype == np.dtype("float32")
    assert float(expected.std()) > 1e-3, "the features are not constant"
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-6)
    assert not np.allclose(features, extractor.features(scene_case(1).result), rtol=1e-2)


class Command:
    """Code that a malicious file can contain."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def test_code_in_a_weight_file_is_never_executed(tmp_path: Path) -> None:
    pytest.importorskip("torch_fidelity", reason="needs torch-fidelity")
    torch.save({"fc.weight": Command(tmp_path / "touched")}, tmp_path / "evil.pth")
    with pytest.raises(Exception, match="weights_only"):
        InceptionFeatures(tmp_path / "evil.pth", ("fid",), CPU)
    assert not (tmp_path / "touched").exists()
