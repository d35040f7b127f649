"""The benchmark of LoRA swaps, on the small layout."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import lora_swap
import pytest
import torch

from fluxexp.models.lora.lora_merger import LoraMerger

OPERATIONS = ["first LoRA", "swap to another", "swap back", "another scale", "none", "again"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["lora_swap.py", "--quick", *arguments])
    with pytest.raises(SystemExit) as ended:
        lora_swap.main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    "optimization", ["lossless", pytest.param("lossless,fp8_linears=true", marks=pytest.mark.slow)]
)
def test_all_operations_are_timed_and_keep_their_promises(
    optimization: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "figures.json"
    assert run(monkeypatch, "--optimizations", optimization, "--json", str(file)) == 0
    report = json.loads(file.read_text())
    assert report["family"] == "flux_dev"
    (row,) = report["rows"]
    assert [operation["name"] for operation in row["operations"]] == OPERATIONS
    assert all(operation["apply_s"] > 0 and operation["step_s"] > 0 for operation in row["operations"])
    assert (row["recompiled"], row["recaptured"], row["broken"]) == (0, 0, [])


def test_a_broken_promise_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def drifting(self: LoraMerger, tensors: Sequence[torch.Tensor], parts: object) -> torch.Tensor:
        return tensors[0] * torch.rand(())

    monkeypatch.setattr(LoraMerger, "_merged", drifting)
    assert run(monkeypatch) == 1
    assert "the latents of the first LoRA have other bits" in capsys.readouterr().out
