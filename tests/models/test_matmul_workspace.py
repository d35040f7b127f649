"""The first model decides whether a process has a matmul workspace, and later models report what they share."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from fluxexp.config.optimization_catalog import NONE
from fluxexp.models.kernels import matmul_workspace
from fluxexp.models.kernels.matmul_workspace import disable_workspace, fix_workspace
from tests.models.conftest import Load

VARIABLE = "CUBLASLT_WORKSPACE_SIZE"
GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "1")  # so that monkeypatch restores the old value
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(matmul_workspace._Process, "is_fixed", False)


def test_the_first_model_decides() -> None:
    assert not fix_workspace(GPU)
    assert "is not set" in str(disable_workspace(GPU))


def test_a_later_model_reports_that_it_has_no_workspace_either() -> None:
    assert disable_workspace(GPU) is None
    assert fix_workspace(GPU)
    assert disable_workspace(GPU) is None
    assert fix_workspace(GPU)


def test_the_environment_takes_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "4096")
    assert "is 4096" in str(disable_workspace(GPU))


def test_a_cpu_has_no_workspace(load: Load) -> None:
    model = load("tiny_fill", optimization=replace(NONE, no_matmul_workspace=True))
    assert "GPU" in model.skipped_optimizations["no_matmul_workspace"]
    assert not fix_workspace(torch.device("cpu"))


CHILD = """
import json, os, sys, torch
os.environ.update(json.loads(sys.argv[1]))
x, weight, bias = (torch.randn(*shape, generator=torch.Generator().manual_seed(0)).cuda().bfloat16()
                   for shape in ((4608, 3072), (3072, 3072), (3072,)))
torch.nn.functional.linear(x, weight, bias)
with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
    y = torch.nn.functional.linear(x, weight, bias)
names = [event.key for event in profiler.key_averages()]
print(json.dumps([sum("memset" in name.lower() for name in names), y.float().norm().item()]))
"""


@pytest.mark.gpu
def test_products_without_a_workspace_need_no_memset() -> None:
    def run(environment: dict[str, str]) -> tuple[int, float]:
        command = [sys.executable, "-c", CHILD, json.dumps(environment)]
        text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
        memsets, norm = json.loads(text.splitlines()[-1])
        return memsets, norm

    (memsets, norm), (_, expected) = run({VARIABLE: "0"}), run({})
    assert memsets == 0
    assert abs(norm - expected) < 1e-3 * expected
