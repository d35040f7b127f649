"""LPIPS and DISTS, with a stand-in network, and with torchvision's networks compared with the libraries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fluxexp.metrics.full.perceptual import MIN_BOX, Perceptual, ReferenceDistance, context_box
from fluxexp.metrics.metric_set import MetricSet, make_metrics
from tests.metrics.test_basic import scene_case

CPU = torch.device("cpu")
Full = Callable[..., Any]


class StandIn(torch.nn.Module):
    """Mean squared difference of the outputs of a few random filters."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = torch.nn.Conv2d(3, 8, 5, stride=2)
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        self.sizes.append(tuple(a.shape))
        distance: torch.Tensor = (self.filters(a) - self.filters(b)).square().mean()
        return distance


@pytest.fixture
def stand_in() -> Perceptual:
    torch.manual_seed(0)
    return Perceptual("lpips", StandIn(), "stand-in", CPU)


def blurred(picture: np.ndarray, radius: int) -> np.ndarray:
    from PIL import Image, ImageFilter

    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


def test_the_masked_region_and_its_surroundings_are_compared(stand_in: Perceptual) -> None:
    case = scene_case(size=160)
    assert case.truth is not None
    assert case.masked_region is not None
    assert stand_in.score(case) == {"lpips": 0}
    assert (case.masked_region[context_box(case.masked_region)].sum(), min(stand_in._network.sizes[0][2:])) >= (
        case.masked_region.sum(),
        MIN_BOX,
    )
    elsewhere = case.truth.copy()
    rows, columns = context_box(case.masked_region)
    outside = np.ones_like(case.masked_region)
    outside[rows, columns] = False
    elsewhere[outside] = 0
    assert stand_in.score(scene_case(size=160, result=elsewhere)) == {"lpips": 0}


def test_more_blur_has_a_larger_distance(stand_in: Perceptual) -> None:
    truth = scene_case().truth
    assert truth is not None
    found = [stand_in.score(scene_case(result=blurred(truth, radius)))["lpips"] or 0.0 for radius in (0, 1, 4)]
    assert found[0] == 0 < found[1] < found[2]


def test_without_anything_to_compare_scores_are_none(stand_in: Perceptual) -> None:
    nothing = np.zeros((96, 96), bool)
    for case in (
        scene_case(truth=None),
        scene_case(masked_region=None),
        scene_case(masked_region=nothing),
        scene_case(size=24),
    ):
        assert stand_in.score(case) == {"lpips": None}
    pair = ReferenceDistance("lpips_to_reference", stand_in)
    assert pair.measure(scene_case(masked_region=nothing), scene_case().result) == {"lpips_to_reference": None}
    assert stand_in._network.sizes == []


def test_images_without_a_mask_are_compared_as_a_whole(stand_in: Perceptual) -> None:
    pair = ReferenceDistance("lpips_to_reference", stand_in)
    case, other = scene_case(masked_region=None), scene_case(1).result
    assert pair.identity == "stand-in"
    assert pair.measure(case, case.result) == {"lpips_to_reference": 0}
    assert (pair.measure(case, other)["lpips_to_reference"] or 0) > 0
    assert {size[2:] for size in stand_in._network.sizes} == {(96, 96)}


def test_small_masked_regions_are_compared_with_their_surroundings() -> None:
    masked_region = np.zeros((100, 50), bool)
    masked_region[95:98, 10:12] = True
    rows, columns = context_box(masked_region)
    assert (rows.stop - rows.start, rows.stop) == (MIN_BOX, 100)
    assert (columns.start, columns.stop) == (0, 50), "the whole width"
    assert masked_region[rows, columns].sum() == masked_region.sum()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache directory of torch with random weights at the places where torchvision stores its downloads."""
    models = pytest.importorskip("torchvision.models", reason="needs torchvision")
    directory = tmp_path_factory.mktemp("torch")
    (directory / "checkpoints").mkdir()
    for name in ("alexnet", "vgg16"):
        torch.manual_seed(0)
        url = models.get_model_weights(name).DEFAULT.url
        torch.save(getattr(models, name)().state_dict(), directory / "checkpoints" / url.rpartition("/")[2])
    return directory


@pytest.fixture
def made(full: Full, hub: Path, monkeypatch: pytest.MonkeyPatch) -> MetricSet:
    """LPIPS and DISTS with the backbones in `hub`, so that nothing is downloaded."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(hub))
    return make_metrics(full("metrics.use=[lpips,dists]"), CPU)


def test_distances_equal_those_of_the_library(made: MetricSet) -> None:
    from torchmetrics.functional.image import (
        deep_image_structure_and_texture_similarity,
        learned_perceptual_image_patch_similarity,
    )

    case = scene_case(result=scene_case(1).result)
    assert case.truth is not None
    assert case.masked_region is not None
    box = context_box(case.masked_region)
    a, b = (
        torch.from_numpy(picture[box].copy()).permute(2, 0, 1)[None].float() / 255
        for picture in (case.result, case.truth)
    )
    scores = {name: value for metric in made.metrics for name, value in metric.score(case).items()}
    lpips = learned_perceptual_image_patch_similarity(a, b, net_type="alex", normalize=True)
    assert scores["lpips"] == pytest.approx(float(lpips), rel=1e-4)
    assert float(lpips) > 1e-4
    dists = deep_image_structure_and_texture_similarity(a, b).detach()
    assert scores["dists"] == pytest.approx(float(dists), rel=1e-4)


def test_distances_grow_with_the_difference(made: MetricSet) -> None:
    truth = scene_case().truth
    assert truth is not None
    noise = np.random.default_rng(0).integers(0, 256, truth.shape, np.uint8)
    found = []
    for share in (0.0, 0.2, 0.6):
        changed = scene_case(result=(truth * (1 - share) + noise * share).astype(np.uint8))
        scores = {name: value for metric in made.metrics for name, value in metric.score(changed).items()}
        pairs = {name: value for pair in made.pair_metrics for name, value in pair.measure(changed, truth).items()}
        assert pairs["lpips_to_reference"] == scores["lpips"]
        found.append((scores["lpips"] or 0.0, scores["dists"] or 0.0))
    for distances in zip(*found, strict=True):
        assert distances[0] == pytest.approx(0, abs=1e-5)
        assert distances[0] < distances[1] < distances[2]
