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


def test_cmmd_equals_its_formula() -> None:
    a, b = sets(0, 3, (40, 30), 5)

    def kernel(x: Any, y: Any) -> Any:
        return np.exp(-((x[:, None] - y[None]) ** 2).sum(-1) / (2 * 10**2)).mean()

    expected = 1000 * (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b))
    assert set_scores(["cmmd"], a, b)["cmmd"] == pytest.approx(expected, rel=1e-5)


def test_fid_equals_its_formula_and_the_library() -> None:
    from torchmetrics.image.fid import _compute_fid

    a, b = sets(1, 0.5, (60, 50))
    covariances = [np.cov(x, rowvar=False) for x in (a, b)]
    roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).astype(complex)).real.sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1]) - 2 * roots
    found = set_scores(["fid"], a, b)["fid"]
    assert found == pytest.approx(expected, rel=1e-5)
    values = [torch.from_numpy(x).double() for x in (a, b)]
    library = _compute_fid(values[0].mean(0), torch.cov(values[0].T), values[1].mean(0), torch.cov(values[1].T))
    assert found == pytest.approx(float(library), rel=1e-5)


def test_fid_of_fewer_images_than_features_is_correct() -> None:
    """Features that are 0 in additional dimensions do not change the distance."""
    a, b = sets(2, 1.0, (20, 30), 2)
    wide = [np.pad(x, ((0, 0), (0, 2046))) for x in (a, b)]
    assert set_scores(["fid"], *wide)["fid"] == pytest.approx(set_scores(["fid"], a, b)["fid"], rel=1e-6)


@pytest.mark.parametrize("numbers", [(60, 60), (60, 40)])
def test_kid_equals_its_formula(numbers: tuple[int, int]) -> None:
    a, b = sets(3, 0.5, numbers)

    def kernel(x: Any, y: Any) -> Any:
        return (x.astype(float) @ y.T / 6 + 1) ** 3

    within = sum((kernel(x, x).sum() - np.trace(kernel(x, x))) / (len(x) * (len(x) - 1)) for x in (a, b))
    expected = 1000 * (within - 2 * kernel(a, b).mean())
    is_whole = numbers[0] == numbers[1]  # otherwise KID is a mean over random subsets
    assert set_scores(["kid"], a, b)["kid"] == pytest.approx(expected, rel=1e-4 if is_whole else 0.2)


def test_distances_between_sets_grow_with_the_difference() -> None:
    a, near = sets(4, 0.3)
    far = near + 1
    same, small, large = (set_scores(ALL, a, other) for other in (a, near, far))
    assert same["fid"] == pytest.approx(0, abs=1e-5)
    assert same["cmmd"] == pytest.approx(0, abs=1e-5)
    for name in ALL:
        assert same[name] < small[name] < large[name]
    assert small == set_scores(ALL, a, near), "the random subsets are the same in each call"


def test_a_shared_ground_truth_counts_once() -> None:
    a, b = sets(5, 0.5, (40, 20))
    assert set_scores(ALL, a, np.repeat(b, 2, axis=0)) == set_scores(ALL, a, b)


def test_too_few_images_give_no_distance_but_a_reason() -> None:
    a, b = sets(6, 1.0, (MIN_IMAGES, MIN_IMAGES - 1))
    assert set_scores(ALL, a, b) == {}
    assert too_few(a, b) == "there are 8 results and 7 ground truths, but at least 8 of each are needed"
    assert "0 ground truths" in str(too_few(a, np.zeros((0, 0), np.float32))), "text to image has no ground truth"
    assert too_few(a, a) is None


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
