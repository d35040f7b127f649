"""The benchmark of the quality of optimizations knows every approximate one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from optimization_quality import EXPERIMENTS, LOSSLESS, OPTIONS

from fluxexp.config import RunConfig
from fluxexp.config.optimization_catalog import OPTIMIZATIONS
from fluxexp.config.optimization_kinds import chosen

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "optimization_quality.py"


def test_every_approximate_optimization_is_measured_alone(compose: Callable[..., RunConfig]) -> None:
    used = {name: chosen(compose(*overrides).optimization, "approximate") for name, overrides in OPTIONS.items()}
    assert used["none"] == {} == chosen(compose(*LOSSLESS).optimization, "approximate")
    assert used["fast"].keys() == {"fp8_linears", "step_cache"}
    alone = {next(iter(options)) for options in used.values() if len(options) == 1}
    alone.add(next(name for name in used["fp8_attention"] if name != "fp8_linears"))  # it needs fp8_linears
    approximate = {name for name, one in OPTIMIZATIONS.items() if one.kind == "approximate"}
    assert alone == approximate | {"attention_backend"}, "SageAttention is approximate, too"


@pytest.mark.slow
def test_it_measures_what_is_available_and_names_the_rest(tmp_path: Path) -> None:
    options = "vae_tiling,attention_backend=sage,text_encoder_weights=int8"
    command = [
        sys.executable,
        str(SCRIPT),
        "--samples",
        "8",
        "--steps",
        "2",
        "--batch-sizes",
        "4",
        "--options",
        options,
    ]
    file = tmp_path / "quality.json"
    done = subprocess.run([*command, "--models", "tiny_dev", "--json", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {row["option"]: row for row in json.loads(file.read_text())["rows"]}
    assert list(rows) == options.split(",")
    assert "sage" in rows["attention_backend=sage"]["skipped"]
    assert rows["vae_tiling"]["identical"], "images smaller than a tile"
    int8 = rows["text_encoder_weights=int8"]
    assert 20 < int8["psnr_worst"] <= int8["psnr_mean"] < 100
    assert int8["num_pairs"] == 8
    assert list(EXPERIMENTS) == ["tiny_fill", "tiny_dev"]
