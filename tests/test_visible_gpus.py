"""Which GPUs a launch uses, on machines whose driver lists some."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from fluxexp.errors import ConfigError
from fluxexp.visible_gpus import Ranks, choose_ranks, visible_gpus


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver lists four GPUs."""
    nvml = SimpleNamespace(nvmlInit=lambda: None, nvmlShutdown=lambda: None, nvmlDeviceGetCount=lambda: 4)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)


@pytest.mark.usefixtures("four_gpus")
def test_numbers_are_those_of_nvidia_smi() -> None:
    order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert choose_ranks([2, 3], None, {}) == Ranks(2, {"CUDA_VISIBLE_DEVICES": "2,3", **order})
    assert choose_ranks("all", None, {}) == Ranks(4, {"CUDA_VISIBLE_DEVICES": "0,1,2,3", **order})
    assert choose_ranks([1], None, {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}).environment == {"CUDA_VISIBLE_DEVICES": "1"}


@pytest.mark.usefixtures("four_gpus")
def test_numbers_count_among_visible_gpus() -> None:
    environment = {"CUDA_VISIBLE_DEVICES": "4, GPU-abc,6"}
    assert choose_ranks([1, 2], None, environment) == Ranks(2, {"CUDA_VISIBLE_DEVICES": "GPU-abc,6"})
    assert choose_ranks("all", None, environment).number == 3


def test_without_a_choice_nothing_is_set() -> None:
    assert choose_ranks(None, None, {"CUDA_VISIBLE_DEVICES": "1"}) == Ranks()
    assert choose_ranks(None, 3, {}) == Ranks(3)


def test_without_gpus_all_is_one_process() -> None:
    assert choose_ranks("all", None, {"CUDA_VISIBLE_DEVICES": ""}) == Ranks()


@pytest.mark.parametrize(("listed", "visible"), [("", []), ("-1", []), ("0,-1,2", ["0"]), ("3,1", ["3", "1"])])
def test_what_cuda_makes_visible(listed: str, visible: list[str]) -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": listed}) == visible


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("gpus", "processes", "environment", "text"),
    [
        ([4], None, {}, "gpus=[4]: names a GPU that is not visible"),
        ([-1], None, {}, "numbered from 0"),
        ([2, 3], None, {"CUDA_VISIBLE_DEVICES": "2,3"}, "CUDA_VISIBLE_DEVICES=2,3: numbers count among them"),
        ([0], None, {"CUDA_VISIBLE_DEVICES": ""}, "no GPU is visible"),
        ([1, 1], None, {}, "names a GPU twice"),
        ([], None, {}, "must be a list of numbers"),
        ("0,1", None, {}, "write numbers such as [2, 3]"),
        ([True], None, {}, "must be a list of numbers"),
        ([0], 2, {}, "cannot be given together with gpus"),
        (None, 0, {}, "processes=0: must be an integer of at least 1"),
    ],
)
def test_what_is_refused(gpus: Any, processes: int | None, environment: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        choose_ranks(gpus, processes, environment)
    assert text in str(refused.value)
